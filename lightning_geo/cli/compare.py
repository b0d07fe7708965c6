"""``lightning-geo compare``: the runs against the first, as text, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_geo.analysis.comparison import Comparison
from lightning_geo.analysis.differences import Row
from lightning_geo.analysis.gate_changes import different_gates
from lightning_geo.analysis.runs import Run, describe_model
from lightning_geo.analysis.subspaces import SubspaceDistance
from lightning_geo.utils.formatting import number, plain, table

__all__ = ["ROWS", "as_csv", "as_json", "as_object", "as_text", "finite", "run_facts"]

#: What is read before one asks for --metric.
ROWS = 15

_PROBES = {
    "same": "Same probe: both were measured on the same inputs.",
    "different": "DIFFERENT PROBES: the runs were measured on different inputs; a difference may be theirs.",
    "batches": "NO COMMON PROBE: a run was measured on its training batches, whose noise is in it.",
}  # fmt: skip


def as_text(runs: Sequence[Run], comparisons: Sequence[Comparison], *, requested: bool) -> str:
    """Return what a person reads.

    Args:
        runs: The first one is A.
        comparisons: Of each further run with the first.
        chosen: Whether the reader asked for these metrics: then all cells count, not each metric's largest.
    """
    sections = []
    for run, comparison in zip(runs[1:], comparisons, strict=True):
        sections += [
            _facts(runs[0], run, comparison),
            _differences(comparison, requested),
            _layers(comparison),
        ]
        sections += [_subspaces(comparison.subspaces)] if comparison.subspaces else []
        sections += _gates(runs[0], run, comparison)
    return "\n\n".join(sections)


def _facts(a: Run, b: Run, comparison: Comparison) -> str:
    lines = []
    for label, run in (("A", a), ("B", b)):
        first, last = run.history.steps[[0, -1]]
        lines.append(f"{label}  {run.name}: {describe_model(run.history)}, steps {first} to {last}")
    steps = comparison.steps
    at = f"step {steps[0]}" if steps[0] == steps[1] else f"step {steps[0]} of A and {steps[1]} of B"
    lines += [_PROBES[comparison.probe], f"Aligned by step: {comparison.alignment.how}. Compared at {at}."]
    return "\n".join(plain(line) for line in (*lines, *comparison.notes))


def _differences(comparison: Comparison, requested: bool) -> str:
    header = ("metric", "layer", "head", "A", "B", "B − A", "A moved", "B moved", "times")
    cells = [
        (
            row.metric, str(row.layer), "" if row.head is None else str(row.head),
            number(row.a), number(row.b), number(row.difference, signed=True),
            number(row.moved_a), number(row.moved_b),
            "∞" if math.isinf(row.relative) else f"{abs(row.relative):.2f}",
        )
        for row in comparison.telling(ROWS, each_metric=not requested)
    ]  # fmt: skip
    title = "What differs most" + (
        "" if requested else " (each metric where it differs most, three of a family)"
    )
    note = (
        "moved: highest − lowest value of that layer or head within the run up to there.\n"
        "times: |B − A| in units of how much the metric moves within a run (root mean square over\n"
        "layers, heads and both runs)."
    )
    return f"{title}:\n{table(header, cells)}\n{note}"


def _layers(comparison: Comparison) -> str:
    several = len({stack for stack, _, _ in comparison.by_layer()}) > 1
    layers = [
        f"{stack}/{layer} ({times:.2f})" if several else f"{layer} ({times:.2f})"
        for stack, layer, times in comparison.by_layer()
    ]
    more = f", and {len(layers) - 12} more" if len(layers) > 12 else ""
    return f"Layers that differ most (root mean square of `times`): {', '.join(layers[:12])}{more}"


def _subspaces(subspaces: Iterable[SubspaceDistance]) -> str:
    rows = []
    for subspace in subspaces:
        if not np.isfinite(subspace.distance).any():
            continue
        layer, head = np.unravel_index(np.nanargmax(subspace.distance), subspace.distance.shape)
        steps = (
            str(subspace.steps[0])
            if subspace.steps[0] == subspace.steps[1]
            else "{} and {}".format(*subspace.steps)
        )
        mean, largest = np.nanmean(subspace.distance), subspace.distance[layer, head]
        rows.append(
            (
                f"{subspace.stack}/{subspace.role}",
                steps,
                f"{mean:.4f}",
                f"{largest:.4f}",
                str(layer),
                str(head),
            )
        )
    title = "Distance of A's and B's subspaces (0 the same, 1 orthogonal), where both kept their bases:"
    return f"{title}\n{table(('subspace', 'step', 'mean', 'largest', 'layer', 'head'), rows)}"


def _gates(a: Run, b: Run, comparison: Comparison) -> list[str]:
    both, differences = different_gates(a.history, b.history, comparison.steps)
    if not both:
        return []
    title = f"Heads with another gate in B than in A: {len(differences)} of {both}"
    if not differences:
        return [f"{title}."]
    several = len(a.history.stacks) > 1
    rows = [
        (plain(f"{d.stack}/{d.layer}") if several else str(d.layer), str(d.head), d.a, d.b, f"{d.lead:.2f}")
        for d in differences[:ROWS]
    ]
    cells = table(("layer", "head", "A", "B", "by"), rows)
    note = (
        "by: lead of its own gate's margin over that of the other run's gate, in the run where that is less."
    )
    return [f"{title}, the clearest first:\n{cells}\n{note}"]


def as_json(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> str:
    """Return everything as one JSON object; what is not finite is null."""
    compared = [
        _comparison(runs[0], run, comparison) for run, comparison in zip(runs[1:], comparisons, strict=True)
    ]
    return json.dumps({"reference": run_facts(runs[0]), "comparisons": compared}, indent=1)


def _comparison(a: Run, run: Run, comparison: Comparison) -> dict[str, Any]:
    return {
        "run": run_facts(run),
        "aligned": comparison.alignment.how,
        "steps": list(comparison.steps),
        "probe": comparison.probe,
        "notes": list(comparison.notes),
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


def as_object(row: NamedTuple) -> dict[str, Any]:
    """Return a row as JSON has it."""
    return {key: finite(value) for key, value in row._asdict().items()}


def run_facts(run: Run) -> dict[str, Any]:
    """Return which run it is, as JSON has it."""
    history = run.history
    return {
        "name": run.name,
        "path": str(run.path),
        "model": history.structure.get("model"),
        "samples": len(history),
        "steps": [int(history.steps[0]), int(history.steps[-1])],
        "probe": str(history.facts["probe"][-1]),
    }


def finite(value: Any) -> Any:
    """Return None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> str:
    """Return one line for each cell of each run, what differs most first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run_a", "run_b", "step_a", "step_b", *Row._fields))
    for run, comparison in zip(runs[1:], comparisons, strict=True):
        where = (runs[0].name, run.name, *comparison.steps)
        writer.writerows((*where, *(finite(value) for value in row)) for row in comparison.rows())
    return text.getvalue().removesuffix("\n")
