"""How a comparison and a pruning plan show themselves."""

from __future__ import annotations

import numpy as np

from lightning_geo.analysis.comparison import Comparison
from lightning_geo.analysis.differences import Difference
from lightning_geo.analysis.pruning import PruningPlan
from lightning_geo.report.figures import classes, legend, matrix
from lightning_geo.report.metric_pictures import differences_side_by_side
from lightning_geo.report.notebook.fragments import drawing, fragment
from lightning_geo.report.rendering import Table
from lightning_geo.report.run_differences import difference_maps, largest_differences
from lightning_geo.report.sentences import comparison_sentences
from lightning_geo.utils.drawing import Drawing
from lightning_geo.utils.errors import UnknownKeyError
from lightning_geo.utils.formatting import did_you_mean, number
from lightning_geo.utils.views import views_of

__all__ = ["register"]

_ROWS = 5
_MAPS = 3


def register() -> None:
    """Register the views of this module."""
    views_of(Comparison, plot=_plot, html=_html)
    views_of(PruningPlan, html=_plan_html)


def _plot(comparison: Comparison, metric: str | None) -> Drawing:
    shown = _requested(comparison, metric)
    at = " and ".join(str(step) for step in dict.fromkeys(comparison.steps))
    pictures = differences_side_by_side(
        shown.a, shown.b, shown.difference, shown.metric, signed=shown.spec.signed
    )
    return drawing(f"{shown.metric} at step {at}", pictures, shown.spec.meaning)


def _requested(comparison: Comparison, metric: str | None) -> Difference:
    by_name = {difference.metric: difference for difference in comparison.differences}
    if metric is None:
        rows = comparison.telling(1)
        return by_name[rows[0].metric] if rows else comparison.differences[0]
    if metric not in by_name:
        raise UnknownKeyError(f"No metric {metric!r} in this comparison. {did_you_mean(metric, by_name)}")
    return by_name[metric]


def _html(comparison: Comparison) -> str:
    at = " and ".join(str(step) for step in dict.fromkeys(comparison.steps))
    sentences = list(comparison_sentences(comparison))
    return fragment(
        "shown_table.html.jinja",
        head=f"Two runs at step {at} · {len(comparison.differences)} metrics in both",
        sentences=sentences[:1] + sentences[-1:] if len(sentences) > 1 else sentences,
        table=largest_differences(comparison, _ROWS),
        pictures=difference_maps(comparison, _MAPS),
    )


def _plan_html(plan: PruningPlan) -> str:
    pictures = []
    removed = set(plan.heads)
    importance = {ranked.head: ranked.importance for ranked in plan.ranking}
    for stack, heads in plan.structure.items():
        labels = np.full((len(heads), max(heads, default=0)), -1)
        values = np.full(labels.shape, np.nan)
        for head in (ranked.head for ranked in plan.ranking if ranked.head.stack == stack):
            labels[head.layer, head.head] = int(head in removed)
            values[head.layer, head.head] = importance[head]
        if not np.isfinite(values).any():
            continue
        name = f" in {stack}" if len(plan.structure) > 1 else ""
        pictures += [
            classes(labels, f"heads to remove{name}"),
            legend(["kept", "removed"], "heads"),
            matrix(values, f"importance{name}", float(np.nanmin(values)), float(np.nanmax(values))),
        ]
    rows = [
        (*((ranked.head.stack,) if len(plan.structure) > 1 else ()), ranked.head.layer, ranked.head.head,
         number(ranked.score, digits=3), ranked.reason)
        for ranked in plan.ranking[:_ROWS]
    ]  # fmt: skip
    header = ("layer", "head", "score", "why")
    order = "importance and similarity" if plan.similarities else "importance alone"
    removes = f"Removes {plan.count} of {len(plan.ranking)} heads"
    return fragment(
        "shown_table.html.jinja",
        head=f"{removes}, by {order}, from the sample at step {plan.step}",
        sentences=["The first ones to go. A plan is a first-order estimate: evaluate_plan checks it."],
        table=Table(header if len(plan.structure) == 1 else ("stack", *header), rows),
        pictures=pictures,
    )
