"""``lightning-geo compare --group``: groups of seeds against the first, as text, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

from lightning_geo.analysis.runs import Run
from lightning_geo.analysis.seed_groups import GroupComparison, GroupRow
from lightning_geo.cli.runs_as_json import as_object, finite, run_metadata
from lightning_geo.utils.formatting import number
from lightning_geo.utils.tables import table, terminal_width, wrapped

__all__ = ["as_csv", "as_json", "as_text"]

_CLEAR = 0.05  # chance up to which a difference counts as clear
_ROWS = 15  # metrics in a table


def as_text(groups: Sequence[Sequence[Run]], comparisons: Sequence[GroupComparison]) -> str:
    """Return text on each further group against the first, or on a single group alone."""
    sections = []
    for group, comparison in zip(groups[1:] or [[]], comparisons, strict=True):
        width = terminal_width()
        lines = [
            wrapped(_members(runs), width, first=f"{label}  ", rest="   ")
            for label, runs in (("A", groups[0]), ("B", group))
            if runs
        ]
        notes = (f"Compared at step {comparison.step}.", *comparison.notes)
        lines += [wrapped(note, width) for note in notes]
        rows = _one_per_metric(comparison.rows)
        sections.append(
            "\n".join([*lines, "", _against(rows, comparison) if group else _alone(rows, comparison)])
        )
    return "\n\n".join(sections)


def _against(rows: Sequence[GroupRow], comparison: GroupComparison) -> str:
    header = ("metric", "layer", "head", "mean A", "± A", "mean B", "± B", "B − A", "statistic", "chance")
    cells = [
        (
            *_place(row), number(row.mean_a), number(row.spread_a), number(row.mean_b), number(row.spread_b),
            number(row.difference, signed=True), f"{abs(row.statistic):.1f}", f"{row.chance:.3f}",
        )
        for row in rows
    ]  # fmt: skip
    clear = sum(row.chance <= _CLEAR for row in comparison.rows)
    notes = [
        "±: standard deviation over runs. statistic: |B − A| / (standard error + the metric's median error).",
        f"chance: how often the largest of all {len(comparison.rows):,} numbers gets this large when the "
        f"{sum(comparison.sizes)} runs are divided into other groups ({comparison.splits} ways, so at least "
        f"{1 / comparison.splits:.3f}). {clear:,} numbers differ at chance ≤ {_CLEAR}.",
    ]
    if comparison.splits * _CLEAR < 1:
        notes.append(
            f"With {comparison.sizes[0]} and {comparison.sizes[1]} runs, chance cannot fall to {_CLEAR}: "
            "treat the differences as hints."
        )
    width = terminal_width()
    drop = (("statistic",), ("± A", "± B"))
    cells_text = table(header, cells, least={"metric": 18}, drop=drop, width=width)
    return "\n".join([cells_text, *(wrapped(note, width) for note in notes)])


def _alone(rows: Sequence[GroupRow], comparison: GroupComparison) -> str:
    cells = [
        (
            *_place(row), number(row.mean_a), number(row.spread_a),
            number(row.spread_a / abs(row.mean_a)) if row.mean_a else "",
        )
        for row in rows
    ]  # fmt: skip
    note = f"±: standard deviation over {comparison.sizes[0]} runs; each metric where ± / |mean| is largest."
    width = terminal_width()
    header = ("metric", "layer", "head", "mean", "±", "± / |mean|")
    return f"{table(header, cells, least={'metric': 24}, width=width)}\n{wrapped(note, width)}"


def _place(row: GroupRow) -> tuple[str, str, str]:
    return row.metric, str(row.layer), "" if row.head is None else str(row.head)


def _members(group: Sequence[Run]) -> str:
    return f"{len(group)} run{'s' if len(group) > 1 else ''}: {', '.join(run.name for run in group)}"


def _one_per_metric(rows: Sequence[GroupRow]) -> list[GroupRow]:
    order = list(rows)
    if not math.isfinite(rows[0].statistic):  # one group: the noisiest first
        order.sort(key=lambda row: -row.spread_a / abs(row.mean_a) if row.mean_a else 0.0)
    first: dict[str, GroupRow] = {}
    for row in order:
        first.setdefault(row.metric, row)
    return list(first.values())[:_ROWS]


def as_json(groups: Sequence[Sequence[Run]], comparisons: Sequence[GroupComparison]) -> str:
    """Return everything as one JSON object; what is not finite is null."""
    compared = [
        {
            "runs": [run_metadata(run) for run in group],
            "step": comparison.step,
            "splits": comparison.splits,
            "notes": list(comparison.notes),
            "differences": [as_object(row) for row in comparison.rows],
        }
        for group, comparison in zip(groups[1:] or [[]], comparisons, strict=True)
    ]
    return json.dumps(
        {"reference": [run_metadata(run) for run in groups[0]], "comparisons": compared}, indent=1
    )


def as_csv(groups: Sequence[Sequence[Run]], comparisons: Sequence[GroupComparison]) -> str:
    """Return one line for each cell of each group, the clearest difference first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("group_a", "group_b", "step", "runs_a", "runs_b", *GroupRow._fields))
    for group, comparison in zip(groups[1:] or [[]], comparisons, strict=True):
        names = [" ".join(run.name for run in runs) for runs in (groups[0], group)]
        where = (*names, comparison.step, *comparison.sizes)
        writer.writerows((*where, *(finite(value) for value in row)) for row in comparison.rows)
    return text.getvalue().removesuffix("\n")
