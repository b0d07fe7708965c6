"""The parts that commands share: their options, the runs they read and the files they write."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_geo.analysis.runs import Run, open_runs
from lightning_geo.metrics.spec import MetricSpec, unit_and_range
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import plain
from lightning_geo.utils.tables import terminal_width, wrapped

__all__ = [
    "RUN",
    "add_command",
    "add_output",
    "one_run",
    "own_metrics_text",
    "put",
    "read_run",
    "read_runs",
    "write_page",
]

#: Help for an argument that names runs.
RUN = "directory of one run, TensorBoard logdir with several runs, or W&B offline run"


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, *, monitor: bool = True
) -> Any:
    """Return the parser of a new command.

    Args:
        commands: Subparsers of the main parser.
        name: The command's name.
        run: What it does; returns the exit code.
        text: Its help, a sentence without capital and full stop.
        monitor: Whether it takes ``--monitor``.
    """
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(function=run)
    if monitor:
        parser.add_argument("--monitor", metavar="NAME", help="monitor to use if the run has several")
    return parser


def add_output(parser: Any, default: str) -> None:
    """Add the option for the path of a page."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(default),
        metavar="FILE",
        help="file to write (default: %(default)s)",
    )


def own_metrics_text(specs: Iterable[MetricSpec]) -> list[str]:
    """Return a section on metrics that are not built in, which no guide explains; nothing for none."""
    lines = [
        f"{spec.name} ({unit_and_range(spec)}): {spec.formula}. {spec.meaning} Source: {spec.source}"
        for spec in specs
    ]
    title = "Metrics that are not built in, as the run describes them:"
    width = terminal_width()
    return ["\n".join([title, *(wrapped(line, width, rest="  ") for line in lines)])] * bool(lines)


def read_runs(paths: Sequence[str], monitor: str | None) -> list[Run]:
    """Return the runs at and below some paths; print skipped parts to stderr."""
    groups, notes = open_runs(paths, monitor)
    _print_skipped(notes)
    return [run for group in groups for run in group]


def read_run(path: str, monitor: str | None) -> Run:
    """Return the one run at or below a path; print skipped parts to stderr.

    Raises:
        RunError: If there is none, or several.
    """
    run, notes = one_run(path, monitor)
    _print_skipped(notes)
    return run


def one_run(path: str, monitor: str | None) -> tuple[Run, list[str]]:
    """Return the one run at or below a path, and a line for each thing that was skipped.

    Raises:
        RunError: If there is none, or several.
    """
    [runs], notes = open_runs([path], monitor)
    if len(runs) > 1:
        raise RunError(f"{path!r} holds {len(runs)} runs. Name one, such as {str(runs[0].path)!r}.")
    return runs[0], notes


def put(text: str) -> None:
    """Print text. A reader that has gone, such as ``head``, must not change the exit code of a check."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python's own flush at exit would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_skipped(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"lightning-geo: {plain(note)}", file=sys.stderr)


def write_page(path: Path, page: str, *, quiet: bool = False) -> None:
    """Write a page, and print its path and size.

    Args:
        path: The file.
        page: Its content.
        quiet: Whether to print nothing.

    Raises:
        RunError: If the file cannot be written.
    """
    try:
        path.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"Cannot write {os.fspath(path)!r}: {error.strerror}.") from error
    if not quiet:
        put(f"{plain(path)}: {len(page.encode(errors='replace')) / 1e3:,.0f} kB")
