"""The command ``lightning-geo``: look at runs and compare them. No torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_geo.analysis.comparison import compare
from lightning_geo.analysis.pruning import pruning_plan
from lightning_geo.analysis.runs import Run, names_of, open_runs
from lightning_geo.analysis.seed_groups import compare_groups
from lightning_geo.cli import compare as compared
from lightning_geo.cli import groups as grouped
from lightning_geo.cli import heads, show
from lightning_geo.cli.tail import follow, newest
from lightning_geo.report.page import report
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import number, plain

__all__ = ["main"]

_RUN = "directory of one run, a TensorBoard logdir with several, or a W&B offline run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What stands behind the command's name; ``None`` for ``sys.argv``.

    Returns:
        0 done, 1 a limit of ``--fail-above`` was passed, 2 bad input.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no × shows ?
    options = _parser().parse_args(arguments)
    try:
        status: int = options.function(options)
        sys.stdout.flush()
    except RunError as error:
        print(f"lightning-geo {options.command}: {plain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `lightning-geo show runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-geo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_show, _add_compare, _add_report, _add_tail, _add_heads, _add_explain):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(function=run)
    parser.add_argument("--monitor", metavar="NAME", help="which monitor, where a run had several")
    return parser


# -- show


def _add_show(commands: Any) -> None:
    parser = _command(commands, "show", _show, "what is in a run")
    parser.add_argument("runs", nargs="+", metavar="RUN", help=_RUN)


def _show(options: argparse.Namespace) -> int:
    print(show.as_text(_opened(options.runs, options.monitor)))
    return 0


# -- compare


def _add_compare(commands: Any) -> None:
    parser = _command(commands, "compare", _compare, "runs against the first: where they differ most")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=_RUN)
    add = parser.add_argument
    add(
        "--metric",
        action="append",
        metavar="NAME",
        help="only this family or metric (repeatable); metric:entropy where both have the name",
    )
    add("--step", type=int, help="compare at the sample nearest to this step (default: the last common one)")
    add("--group", action="append", nargs="+", metavar="RUN",
        help="runs of one configuration that differ in their seed; twice or more to compare configurations: "
        "mean and spread tell a difference from noise")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as one JSON object")
    form.add_argument("--csv", action="store_true", help="print a line for each metric, layer and head")
    add("--fail-above", action="append", type=_limit, default=[], metavar="METRIC=VALUE",
        help="exit with 1 if any layer or head differs by more in this metric (repeatable)")  # fmt: skip


def _compare(options: argparse.Namespace) -> int:
    if options.group:
        return _compare_groups(options)
    if not options.runs:
        raise RunError("name two runs, or a directory of several.")
    runs = _opened(options.runs, options.monitor)
    if len(runs) < 2:
        raise RunError(f"{runs[0].name!r} is one run: name another to compare it with.")
    comparisons = [compare(runs[0].history, run.history, options.metric, options.step) for run in runs[1:]]
    # before anything is printed: a limit that cannot be checked is bad input
    passed = [
        f"{run.name}: {metric} differs by {number(largest)}, more than {number(limit)}"
        for run, comparison in zip(runs[1:], comparisons, strict=True)
        for metric, limit in options.fail_above
        if (largest := comparison.largest(metric)) > limit
    ]
    if options.json:
        print(compared.as_json(runs, comparisons))
    elif options.csv:
        print(compared.as_csv(runs, comparisons))
    else:
        print(compared.as_text(runs, comparisons, requested=bool(options.metric)))
    for line in passed:
        print(f"lightning-geo compare: {plain(line)}", file=sys.stderr)
    return 1 if passed else 0


def _compare_groups(options: argparse.Namespace) -> int:
    if options.runs or options.fail_above:
        raise RunError("--group goes neither with runs outside of groups nor with --fail-above.")
    groups = [_opened(group, options.monitor) for group in options.group]
    flat = [run for group in groups for run in group]
    names = iter(names_of([run.path for run in flat]))  # below what all groups share
    groups = [[replace(run, name=next(names)) for run in group] for group in groups]
    reference, *others = [[run.history for run in group] for group in groups]
    comparisons = [compare_groups(reference, other, options.metric, options.step) for other in others or [[]]]
    form = grouped.as_json if options.json else grouped.as_csv if options.csv else grouped.as_text
    print(form(groups, comparisons))
    return 0


def _limit(text: str) -> tuple[str, float]:
    metric, _, value = text.partition("=")
    try:
        return metric, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected METRIC=VALUE such as entropy=0.5, but got {text!r}"
        ) from None


# -- report


def _add_report(commands: Any) -> None:
    parser = _command(commands, "report", _report, "one HTML file that says what changed, when and where")
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"{_RUN}; several are compared with the first")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE",
        help="where the report goes (default: %(default)s)")  # fmt: skip


def _report(options: argparse.Namespace) -> int:
    page = report(_opened(options.runs, options.monitor))
    _write(options.output, page)
    return 0


# -- tail


def _add_tail(commands: Any) -> None:
    parser = _command(commands, "tail", _tail, "a line for each sample as it arrives, until Ctrl-C")
    parser.add_argument("run", metavar="RUN", help=f"{_RUN}: then the one written last")


def _tail(options: argparse.Namespace) -> int:
    run = newest(options.run)
    try:
        print(plain(run), flush=True)
        for line in follow(run, options.monitor):
            print(line, flush=True)
    except KeyboardInterrupt:
        print()
    return 0


# -- heads


def _add_heads(commands: Any) -> None:
    parser = _command(commands, "heads", _heads, "which heads a run could do without, and why")
    parser.add_argument("run", metavar="RUN", help="directory of one run that measured importance")
    parser.add_argument(
        "--fraction", type=float, default=0.3, help="share of the heads (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def _heads(options: argparse.Namespace) -> int:
    runs = _opened([options.run], options.monitor)
    if len(runs) > 1:
        raise RunError(f"{options.run!r} holds {len(runs)} runs: name one, such as {str(runs[0].path)!r}.")
    try:
        plan = pruning_plan(runs[0].history, options.fraction)
    except ValueError as error:
        raise RunError(str(error)) from error
    form = heads.as_json if options.json else heads.as_text
    print(form(runs[0].name, plan))
    return 0


# -- explain


def _add_explain(commands: Any) -> None:
    text = "a page that traces a classifier's predictions to its heads (loads torch and transformers)"
    parser = commands.add_parser("explain", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(function=_explain)
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory of a text classifier of transformers and its tokenizer")
    add("--text", action="append", required=True, help="a text to classify (repeatable)")
    add("--target", type=int, required=True, help="number of the class that the texts should be")
    add("--contrast", type=int, help="number of the class to compare with (default: the strongest other one)")
    add("--reference", type=Path, metavar="FILE",
        help="lines of a class number, a tab, a text: the correctly predicted say what is usual")  # fmt: skip
    add("-o", "--output", type=Path, default=Path("explanation.html"), metavar="FILE",
        help="where the page goes (default: %(default)s)")  # fmt: skip


def _explain(options: argparse.Namespace) -> int:
    from lightning_geo.cli.explain import page_of

    page = page_of(options.model, options.text, options.target, options.contrast, options.reference)
    _write(options.output, page)
    return 0


# -- all of them


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{os.fspath(path)!r} cannot be written: {error.strerror}.") from error
    print(f"{plain(path)}: {len(page.encode(errors='replace')) / 1e3:,.0f} kB")


def _opened(paths: Sequence[str], monitor: str | None) -> list[Run]:
    groups, notes = open_runs(paths, monitor)
    for note in notes:
        print(f"lightning-geo: {plain(note)}", file=sys.stderr)
    return [run for group in groups for run in group]


if __name__ == "__main__":
    sys.exit(main())
