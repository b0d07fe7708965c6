"""The report's chapter on how further runs differ from the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lightning_geo.analysis.comparison import Comparison
from lightning_geo.analysis.differences import Difference
from lightning_geo.analysis.gate_changes import different_gates
from lightning_geo.analysis.runs import Run
from lightning_geo.report.figures import matrix
from lightning_geo.report.rendering import Table
from lightning_geo.report.sentences import comparison_sentences, margin
from lightning_geo.utils.formatting import number

__all__ = [
    "GateDifferences",
    "RunDifferences",
    "difference_maps",
    "largest_differences",
    "run_differences",
]

_FIRST = 5  # rows at the top of the page
_ROWS = 10  # of the table of differences
_MAPS = 6  # differences drawn for each further run
_GATES_APART = 10  # heads listed whose gates differ between runs
_COMPARED = 4  # further runs with pictures of their own; the file has to stay small


class GateDifferences(NamedTuple):
    """Heads whose gate differs between two runs: how many, and the clearest ones."""

    summary: str
    heads: Table


class RunDifferences(NamedTuple):
    """How one run differs from the first.

    Args:
        name: The run's name.
        sentences: The largest differences, and how the runs were compared.
        gates: ``None`` where no head has a gate in both runs.
        first: The five metrics that differ most.
        largest: The ten that do.
        maps: Pictures of differences; ``None`` beyond the first four runs.
    """

    name: str
    sentences: list[str]
    gates: GateDifferences | None
    first: Table
    largest: Table
    maps: list[Markup] | None


def run_differences(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> list[RunDifferences]:
    """Return the chapter's contents for each further run.

    Args:
        runs: The first one is the reference.
        comparisons: One for each further run.
    """
    return [
        RunDifferences(
            run.name,
            list(comparison_sentences(comparison)),
            _gates(runs[0], run, comparison),
            largest_differences(comparison, _FIRST),
            largest_differences(comparison, _ROWS),
            difference_maps(comparison, _MAPS) if place < _COMPARED else None,
        )
        for place, (run, comparison) in enumerate(zip(runs[1:], comparisons, strict=True))
    ]


def _gates(a: Run, b: Run, comparison: Comparison) -> GateDifferences | None:
    both, different = different_gates(a.history, b.history, comparison.steps)
    if not both:
        return None
    several = len(a.history.stacks) > 1
    rows = [
        (f"{d.stack}/{d.layer}" if several else d.layer, d.head, d.a, d.b, margin(d.lead))
        for d in different[:_GATES_APART]
    ]
    summary = f"The gates of {len(different)} of {both} heads differ between A and B"
    return GateDifferences(summary, Table(("layer", "head", "A", "B", "by"), rows))


def largest_differences(comparison: Comparison, count: int) -> Table:
    """Return a table of the metrics that differ most, each where it differs most."""
    rows = [
        (row.metric, row.layer, "" if row.head is None else row.head,
         number(row.a, digits=3), number(row.b, digits=3),
         number(row.difference, signed=True, digits=3), f"{abs(row.relative):.2f}")
        for row in comparison.telling(count)
    ]  # fmt: skip
    return Table(("metric", "layer", "head", "A", "B", "B − A", "relative"), rows)


def difference_maps(comparison: Comparison, count: int) -> list[Markup]:
    """Return pictures of the headline metrics that differ most between two runs."""

    def largest_first(difference: Difference) -> float:
        return -float(np.nan_to_num(np.nanmax(np.abs(difference.relative))))

    headline = [
        difference
        for difference in comparison.differences
        if difference.metric.rpartition("/")[2] in difference.spec.headline
        and difference.a.ndim == 2
        and np.isfinite(difference.difference).any()
    ]
    maps = []
    for difference in sorted(headline, key=largest_first)[:count]:
        end = float(np.nanmax(np.abs(difference.difference))) or 1.0
        title = f"{difference.metric}, B − A"
        maps.append(matrix(difference.difference, title, -end, end, diverging=True))
    return maps
