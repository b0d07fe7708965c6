"""``lightning-geo compare``: runs against the first one, or groups of seeds; as text, JSON or CSV."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_geo.analysis.comparison import Comparison, compare
from lightning_geo.analysis.differences import Row
from lightning_geo.analysis.gate_changes import different_gates
from lightning_geo.analysis.runs import Run, describe_model, names_of
from lightning_geo.analysis.seed_groups import compare_groups
from lightning_geo.analysis.subspaces import SubspaceDistance
from lightning_geo.cli import groups as seed_groups
from lightning_geo.cli.command import RUN, add_command, own_metrics_text, put, read_runs
from lightning_geo.cli.runs_as_json import as_object, finite, run_metadata
from lightning_geo.metrics.foreign_specs import as_stored
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import number, plain
from lightning_geo.utils.tables import table, terminal_width, wrapped

__all__ = ["add_parser", "as_csv", "as_json", "as_text"]

_ROWS = 15  # lines of a table; --metric selects others
_LAYERS = 12  # layers in a line

_PROBES = {
    "same": "Same probe: both runs were measured on the same inputs.",
    "different": "DIFFERENT PROBES: the runs were measured on different inputs; differences may be theirs.",
    "batches": "NO COMMON PROBE: a run was measured on training batches; differences include their noise.",
}  # fmt: skip


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "compare", _run, "compare runs with the first one")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=RUN)
    add = parser.add_argument
    add("--metric", action="append", metavar="NAME",
        help="only this family or metric (repeatable); metric:entropy where both have the name")  # fmt: skip
    add("--step", type=int, help="compare at the sample nearest to this step (default: the last common one)")
    add("--group", action="append", nargs="+", metavar="RUN",
        help="runs of one configuration with different seeds; repeat to compare configurations: mean and "
        "spread tell a difference from noise")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as one JSON object")
    form.add_argument("--csv", action="store_true", help="print one line per metric, layer and head")
    add("--fail-above", action="append", type=_limit, default=[], metavar="METRIC=VALUE",
        help="exit with 1 if any layer or head differs by more in this metric (repeatable)")  # fmt: skip


def _limit(text: str) -> tuple[str, float]:
    metric, _, value = text.partition("=")
    try:
        return metric, float(value)
    except ValueError:
        message = f"expected METRIC=VALUE such as entropy=0.5, but got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _run(options: argparse.Namespace) -> int:
    if options.group:
        return _run_groups(options)
    if not options.runs:
        raise RunError("Name two runs, or a directory with several.")
    runs = read_runs(options.runs, options.monitor)
    if len(runs) < 2:
        raise RunError(f"Only one run found, {runs[0].name!r}. Name another one to compare it with.")
    comparisons = [compare(runs[0].history, run.history, options.metric, options.step) for run in runs[1:]]
    # before anything is printed: a limit that cannot be checked is bad input
    exceeded = [
        f"{run.name}: {metric} differs by {number(largest)}, more than {number(limit)}"
        for run, comparison in zip(runs[1:], comparisons, strict=True)
        for metric, limit in options.fail_above
        if (largest := comparison.largest(metric)) > limit
    ]
    if options.json:
        put(as_json(runs, comparisons))
    elif options.csv:
        put(as_csv(runs, comparisons))
    else:
        put(as_text(runs, comparisons, every_cell=bool(options.metric)))
    for line in exceeded:
        print(f"lightning-geo compare: {plain(line)}", file=sys.stderr)
    return 1 if exceeded else 0


def _run_groups(options: argparse.Namespace) -> int:
    if options.runs or options.fail_above:
        raise RunError("--group cannot be combined with runs outside of groups or with --fail-above.")
    groups = [read_runs(group, options.monitor) for group in options.group]
    # each group was named below its own directory; together they need names below what all share
    names = iter(names_of([run.path for group in groups for run in group]))
    groups = [[replace(run, name=next(names)) for run in group] for group in groups]
    reference, *others = [[run.history for run in group] for group in groups]
    comparisons = [compare_groups(reference, other, options.metric, options.step) for other in others or [[]]]
    form = seed_groups.as_json if options.json else seed_groups.as_csv if options.csv else seed_groups.as_text
    put(form(groups, comparisons))
    return 0


def as_text(runs: Sequence[Run], comparisons: Sequence[Comparison], *, every_cell: bool) -> str:
    """Return text for a terminal.

    Args:
        runs: The first one is A.
        comparisons: Of each further run with the first.
        every_cell: Whether the table ranks all cells; otherwise it has each metric's largest difference, at
            most three of a family.
    """
    sections = []
    for run, comparison in zip(runs[1:], comparisons, strict=True):
        sections.append(_metadata(runs[0], run, comparison))
        sections.append(_differences(comparison, every_cell))
        sections.append(_layers(comparison))
        sections += [_subspaces(comparison.subspaces)] if comparison.subspaces else []
        sections += _gates(runs[0], run, comparison)
        sections += own_metrics_text(comparison.own_metrics())
    return "\n\n".join(sections)


def _metadata(a: Run, b: Run, comparison: Comparison) -> str:
    lines, width = [], terminal_width()
    for label, run in (("A", a), ("B", b)):
        first, last = run.history.steps[[0, -1]]
        text = f"{run.name}: {describe_model(run.history)}, steps {first} to {last}"
        lines.append(wrapped(text, width, first=f"{label}  ", rest="   "))
    steps = comparison.steps
    at = f"step {steps[0]}" if steps[0] == steps[1] else f"step {steps[0]} of A and {steps[1]} of B"
    aligned = f"Aligned by step: {comparison.alignment.how}. Compared at {at}."
    notes = (_PROBES[comparison.probe], aligned, *comparison.notes)
    return "\n".join([*lines, *(wrapped(note, width) for note in notes)])


def _differences(comparison: Comparison, every_cell: bool) -> str:
    header = ("metric", "layer", "head", "A", "B", "B − A", "A moved", "B moved", "relative")
    cells = [
        (
            row.metric, str(row.layer), "" if row.head is None else str(row.head),
            number(row.a), number(row.b), number(row.difference, signed=True),
            number(row.moved_a), number(row.moved_b),
            "∞" if math.isinf(row.relative) else f"{abs(row.relative):.2f}",
        )
        for row in comparison.telling(_ROWS, each_metric=not every_cell)
    ]  # fmt: skip
    selection = "" if every_cell else " (each metric where it differs most, at most three per family)"
    width = terminal_width()
    lines = [
        wrapped(f"Largest differences{selection}:", width),
        table(header, cells, least={"metric": 24}, drop=(("A moved", "B moved"),), width=width),
        wrapped("A/B moved: max − min of that layer or head in the run so far.", width),
        wrapped(
            "relative: |B − A| in units of how much the metric moves within a run (root mean square over "
            "layers, heads and both runs).",
            width,
        ),
    ]
    return "\n".join(lines)


def _layers(comparison: Comparison) -> str:
    layers = comparison.by_layer()
    several = len({stack for stack, _, _ in layers}) > 1
    shown = [
        f"{stack}/{layer} ({size:.2f})" if several else f"{layer} ({size:.2f})"
        for stack, layer, size in layers[:_LAYERS]
    ]
    more = f", and {len(layers) - _LAYERS} more" if len(layers) > _LAYERS else ""
    text = f"Layers that differ most (root mean square of `relative`): {', '.join(shown)}{more}"
    return wrapped(text, terminal_width(), rest="  ")


def _subspaces(subspaces: Iterable[SubspaceDistance]) -> str:
    rows = []
    for subspace in subspaces:
        distance = subspace.distance
        if not np.isfinite(distance).any():
            continue
        layer, head = np.unravel_index(np.nanargmax(distance), distance.shape)
        steps = " and ".join(str(step) for step in dict.fromkeys(subspace.steps))
        rows.append(
            (f"{subspace.stack}/{subspace.role}", steps, f"{np.nanmean(distance):.4f}",
             f"{distance[layer, head]:.4f}", str(layer), str(head))
        )  # fmt: skip
    width = terminal_width()
    title = wrapped(
        "Distance between A's and B's subspaces (0 identical, 1 orthogonal), at steps where both stored "
        "their bases:",
        width,
    )
    header = ("subspace", "step", "mean", "largest", "layer", "head")
    return f"{title}\n{table(header, rows, least={'subspace': 20}, width=width)}"


def _gates(a: Run, b: Run, comparison: Comparison) -> list[str]:
    both, differences = different_gates(a.history, b.history, comparison.steps)
    if not both:
        return []
    title = f"Heads whose gate differs between A and B: {len(differences)} of {both}"
    if not differences:
        return [f"{title}."]
    several = len(a.history.stacks) > 1
    rows = [
        (f"{d.stack}/{d.layer}" if several else str(d.layer), str(d.head), d.a, d.b, f"{d.lead:.2f}")
        for d in differences[:_ROWS]
    ]
    width = terminal_width()
    cells = table(("layer", "head", "A", "B", "by"), rows, least={"layer": 12}, width=width)
    note = "by: the smaller of the two runs' margin leads; near 0 the head is at a threshold in one run."
    return [f"{wrapped(f'{title}, clearest first:', width)}\n{cells}\n{wrapped(note, width)}"]


def as_json(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> str:
    """Return everything as one JSON object; what is not finite is null."""
    compared = [
        _comparison(runs[0], run, comparison) for run, comparison in zip(runs[1:], comparisons, strict=True)
    ]
    return json.dumps({"reference": run_metadata(runs[0]), "comparisons": compared}, indent=1)


def _comparison(a: Run, run: Run, comparison: Comparison) -> dict[str, Any]:
    return {
        "run": run_metadata(run),
        "aligned": comparison.alignment.how,
        "steps": list(comparison.steps),
        "probe": comparison.probe,
        "notes": list(comparison.notes),
        "metrics": {spec.name: as_stored(spec) for spec in comparison.own_metrics()},
        "differences": [as_object(row) for row in comparison.rows()],
        "layers": [
            {"stack": stack, "layer": layer, "relative": finite(times)}
            for stack, layer, times in comparison.by_layer()
        ],
        "subspaces": [
            {"stack": s.stack, "role": s.role, "steps": list(s.steps),
             "distance": [[finite(d) for d in row] for row in s.distance.tolist()]}
            for s in comparison.subspaces
        ],
        "gates": [as_object(d) for d in different_gates(a.history, run.history, comparison.steps)[1]],
    }  # fmt: skip


def as_csv(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> str:
    """Return one line for each cell of each run, largest difference first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run_a", "run_b", "step_a", "step_b", *Row._fields))
    for run, comparison in zip(runs[1:], comparisons, strict=True):
        where = (runs[0].name, run.name, *comparison.steps)
        writer.writerows((*where, *(finite(value) for value in row)) for row in comparison.rows())
    return text.getvalue().removesuffix("\n")
