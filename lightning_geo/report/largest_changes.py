"""The report's short list of the largest changes in a run."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from lightning_geo.analysis.changes import Change, changes
from lightning_geo.analysis.runs import Run
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.report.charts import sparkline
from lightning_geo.utils.formatting import moved

__all__ = ["LargestChange", "largest_changes"]


class LargestChange(NamedTuple):
    """A metric that changed much.

    Args:
        title: Its name for people, with the stored one.
        course: The model over the run.
        ends: First and last value of the model.
        most: Where it changed most, and by how much.
    """

    title: str
    course: Markup
    ends: str
    most: str


def largest_changes(run: Run, count: int = 5) -> list[LargestChange]:
    """Return the metrics that changed most, one of each family, since metrics of a family change together.

    Args:
        run: The run.
        count: How many at most.
    """
    first: dict[str, Change] = {}
    for change in changes(run.history):
        if not compares_samples(change.series.name) and change.most_change:
            first.setdefault(change.series.spec.family, change)
    return [_shown(change) for change in list(first.values())[:count]]


def _shown(change: Change) -> LargestChange:
    series, (layer, head) = change.series, change.most
    title = series.spec.title
    place = f"layer {layer}" if head is None else f"layer {layer} head {head}"
    return LargestChange(
        f"{title} ({series.key})" if title else series.key,
        sparkline(series.model(), f"{series.key} over the run"),
        moved(change.first, change.last),
        f"{place}: {moved(*change.most_ends)}",
    )
