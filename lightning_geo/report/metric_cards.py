"""The report's chapters metric by metric: a card for each headline metric, and a table of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from lightning_geo.analysis.changes import Change, change_of, changes
from lightning_geo.analysis.runs import MetricSeries, Run, find_series, metric_series, own_metrics
from lightning_geo.metrics.foreign_specs import differing_fields
from lightning_geo.metrics.spec import unit_and_range
from lightning_geo.report.metric_pictures import head_maps, layer_course, limits, model_course
from lightning_geo.report.rendering import Table
from lightning_geo.report.sentences import sentence
from lightning_geo.utils.formatting import number

__all__ = ["MetricCard", "metric_cards", "metric_table", "own_metrics_table"]


class MetricCard(NamedTuple):
    """The report's contents for one metric.

    Args:
        name: Its name in the history.
        sentence: Its change over the run.
        definition: Formula and unit.
        meaning: How to read its values.
        pictures: Heads at the start, at the end and their change; layers and models over the run.
    """

    name: str
    sentence: str
    definition: str
    meaning: str
    pictures: list[Markup]


def metric_cards(runs: Sequence[Run]) -> list[MetricCard]:
    """Return a card for each headline metric of the first run, the one that changed most first.

    Args:
        runs: One run, or several of the same model, whose curves share a chart.
    """
    return [_card(runs, change) for change in changes(runs[0].history)]


def metric_table(run: Run) -> Table:
    """Return a table of all metrics of a run that have two samples."""
    rows = []
    for series in metric_series(run.history):
        change = change_of(series, run.history.steps)
        if change is not None:
            layer, head = change.most
            rows.append(
                (series.key, number(change.first, digits=3), number(change.last, digits=3),
                 number(change.last - change.first, signed=True, digits=3), layer,
                 "" if head is None else head, number(change.most_change, signed=True, digits=3))
            )  # fmt: skip
    return Table(("metric", "first", "last", "change", "most in layer", "head", "by"), rows)


def own_metrics_table(run: Run) -> Table:
    """Return a table of a run's metrics that are not built in."""
    specs = [series.spec for series in own_metrics(run.history)]
    return Table(
        ("metric", "unit, range", "formula", "how to read it", "source"),
        [(spec.name, unit_and_range(spec), spec.formula, spec.meaning, spec.source) for spec in specs],
    )


def _card(runs: Sequence[Run], change: Change) -> MetricCard:
    series, steps = change.series, runs[0].history.steps
    same = [(run, other) for run in runs if (other := _same(run, series)) is not None]
    ends = limits(*(other for _, other in same))
    pictures = []
    if series.values.ndim == 3:
        second = [(other, int(run.history.steps[-1])) for run, other in same if run is not runs[0]]
        pictures = head_maps(change, steps, ends, second[0] if len(runs) == 2 and second else None)
    pictures.append(layer_course(series, steps, ends, "by layer, over training"))
    pictures.append(model_course([(run.name, run.history.steps, other) for run, other in same]))
    unit = "" if series.spec.unit == "1" else f", in {series.spec.unit}"
    definition = f"{series.spec.formula}{unit}"
    return MetricCard(series.key, sentence(change), definition, series.spec.meaning, pictures)


def _same(run: Run, series: MetricSeries) -> MetricSeries | None:
    """The metric in another run of the same model, whose only stack may have another name."""
    stack = series.stack if series.stack in run.history.stacks else next(iter(run.history.stacks))
    other = find_series(run.history, stack, series.name)
    return None if other is None or differing_fields(series.spec, other.spec) else other
