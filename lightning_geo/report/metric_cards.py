"""The report's chapters metric by metric: a card for each headline metric, and a table of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lightning_geo.analysis.changes import Change, change_of, changes
from lightning_geo.analysis.runs import MetricSeries, Run, find_series, metric_series, own_metrics
from lightning_geo.metrics.foreign_specs import differing_fields
from lightning_geo.metrics.spec import unit_and_range
from lightning_geo.report.figures import evolution, lines, matrix
from lightning_geo.report.rendering import Table
from lightning_geo.report.sentences import sentence
from lightning_geo.utils.formatting import number

__all__ = ["MetricCard", "metric_cards", "metric_table", "own_metrics_table"]

Array = NDArray[np.float64]


class MetricCard(NamedTuple):
    """The report's contents for one metric.

    Args:
        name: Its name in the history.
        sentence: What happened to it.
        definition: Formula and unit.
        meaning: What its values suggest.
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
                (series.key, number(change.first), number(change.last),
                 number(change.last - change.first, signed=True), layer,
                 "" if head is None else head, number(change.most_change, signed=True))
            )  # fmt: skip
    return Table(("metric", "first", "last", "change", "most in layer", "head", "by"), rows)


def own_metrics_table(run: Run) -> Table:
    """Return what a run says of its metrics that are not built in."""
    specs = [series.spec for series in own_metrics(run.history)]
    return Table(
        ("metric", "unit, range", "formula", "how to read it", "source"),
        [(spec.name, unit_and_range(spec), spec.formula, spec.meaning, spec.source) for spec in specs],
    )


def _card(runs: Sequence[Run], change: Change) -> MetricCard:
    series, steps = change.series, runs[0].history.steps
    spec, layers = series.spec, series.layers()
    low, high = _limits(series)
    pictures = _heads(runs, change, low, high) if series.values.ndim == 3 else []
    ends = (low, high) if spec.signed else _range(layers)
    pictures.append(evolution(layers, steps, "by layer, over training", *ends, diverging=spec.signed))
    pictures.append(_curves(runs, series))
    unit = "" if spec.unit == "1" else f", in {spec.unit}"
    return MetricCard(series.key, sentence(change), f"{spec.formula}{unit}", spec.meaning, pictures)


def _heads(runs: Sequence[Run], change: Change, low: float, high: float) -> list[Markup]:
    """The heads at the start, at the end, in the other of two runs, and what they changed by."""
    series, steps = change.series, runs[0].history.steps
    signed, drift = series.spec.signed, series.name.startswith("drift")
    known = np.flatnonzero(np.isfinite(series.values.reshape(len(steps), -1)).any(axis=1))
    start, end = known[0], known[-1]
    pictures = []
    if not drift:  # drift is 0 at the start
        pictures.append(matrix(series.values[start], f"step {steps[start]}", low, high, diverging=signed))
    pictures.append(matrix(series.values[end], f"step {steps[end]}", low, high, diverging=signed))
    if len(runs) == 2 and (other := _same(runs[1], series)) is not None:
        title = f"B, step {runs[1].history.steps[-1]}"
        pictures.append(matrix(other.values[-1], title, low, high, diverging=signed))
    if not drift:
        most = float(np.nanmax(np.abs(change.cells))) or 1.0
        pictures.append(matrix(change.cells, "change", -most, most, diverging=True))
    return pictures


def _curves(runs: Sequence[Run], series: MetricSeries) -> Markup:
    """The model's mean or maximum in each run; a single run also gets the band of its heads or layers."""
    curves = [
        (run.name, run.history.steps, other.model())
        for run in runs
        if (other := _same(run, series)) is not None
    ]
    middle = "maximum" if series.spec.summary == "max" else "mean"
    if len(runs) > 1:
        return lines(curves, f"model {middle}, by run")
    flat = series.values.reshape(len(series.values), -1)
    defined = np.isfinite(flat).any(axis=1)
    band = np.full((2, len(flat)), np.nan)
    if defined.any():
        band[:, defined] = np.nanpercentile(flat[defined], (10, 90), axis=1)
    cells = "heads" if series.values.ndim == 3 else "layers"
    return lines(curves, f"{middle} and 10–90 % band over {cells}", (band[0], band[1]))


def _same(run: Run, series: MetricSeries) -> MetricSeries | None:
    """The metric in another run of the same model, whose only stack may have another name."""
    stack = series.stack if series.stack in run.history.stacks else next(iter(run.history.stacks))
    other = find_series(run.history, stack, series.name)
    return None if other is None or differing_fields(series.spec, other.spec) else other


def _limits(series: MetricSeries) -> tuple[float, float]:
    """Ends of the colour bar, equal for start and end: the metric's whole range where it takes half of it."""
    low, high = _range(series.values)
    if series.spec.signed:  # 0 has to be in the middle
        high = max(-low, high)
        low = -high
    least, most = series.spec.range
    if least is not None and most is not None and high - low > (most - least) / 2:
        return least, most
    return low, high


def _range(values: Array) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)
