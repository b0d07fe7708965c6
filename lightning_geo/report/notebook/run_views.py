"""How a record, a run and a diagnosis show themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lightning_geo.analysis.changes import Change, change_of, changes
from lightning_geo.analysis.findings.diagnosis import diagnose
from lightning_geo.analysis.findings.words import span
from lightning_geo.analysis.runs import MetricSeries, Run, describe_model, metric_series, requested_series
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.report.charts import bars, sparkline
from lightning_geo.report.figures import evolution, matrix
from lightning_geo.report.metric_pictures import head_maps, layer_course, limits, model_course
from lightning_geo.report.notebook.fragments import drawing, fragment
from lightning_geo.report.page import report
from lightning_geo.storage.diagnosis import Diagnosis
from lightning_geo.storage.event_files import opened
from lightning_geo.storage.finding import worst
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.drawing import Drawing, Page
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.formatting import moved
from lightning_geo.utils.views import views_of

__all__ = ["register"]

#: Headline metrics that stand first: they tell most, and have one range for every model.
_FIRST = ("normalized_entropy", "effective_rank.output", "redundancy")
_MAPS = 3


def register() -> None:
    """Register the views of this module."""
    views_of(GeometryRecord, plot=_record_plot, html=_record_html)
    views_of(GeometryHistory, plot=_plot, findings=diagnose, report=_report, html=_history_html)
    views_of(Diagnosis, html=_diagnosis_html)


# -- a record


def _record_plot(record: GeometryRecord, metric: str | None) -> Drawing:
    history = GeometryHistory([record])
    shown = _headline_series(history, 6) if metric is None else requested_series(history, metric)
    if not shown:
        raise ArgumentError("Expected the record to hold a headline metric with a value, but it has none.")
    return drawing(
        f"{metric or 'headline metrics'} at step {record.step}", [_map(series) for series in shown]
    )


def _record_html(record: GeometryRecord) -> str:
    history = GeometryHistory([record])
    notes = []
    if record.coverage_share < 1:
        notes.append(f"{100 * record.coverage_share:.0f} % of the attention calls were measured.")
    return fragment(
        "shown_run.html.jinja",
        head=f"Step {record.step} · {len(record.keys())} metrics · {describe_model(history)}",
        verdict="",
        level="",
        findings=[(span(finding), finding.message) for finding in record.findings],
        maps=[(_map(series), Markup(""), "") for series in _headline_series(history, _MAPS)],
        notes=notes,
    )


def _headline_series(history: GeometryHistory, count: int) -> list[MetricSeries]:
    """The headline metrics of heads, those that tell most first, those of layers last."""
    headline = [series for series in metric_series(history) if series.name in series.spec.headline]

    def place(series: MetricSeries) -> tuple[int, bool]:
        first = _FIRST.index(series.name) if series.name in _FIRST else len(_FIRST)
        return first, series.values.ndim < 3

    return sorted(headline, key=place)[:count]


def _map(series: MetricSeries, sample: int = -1, title: str = "") -> Markup:
    values, title = series.values[sample], title or series.key
    if values.ndim == 1 and not series.spec.signed and not (values < 0).any():
        return bars(values, title)
    return matrix(values, title, *limits(series), diverging=series.spec.signed)


# -- a run


def _history_html(history: GeometryHistory) -> str:
    diagnosis = diagnose(history)
    moved = [change for change in changes(history) if not compares_samples(change.series.name)]
    families: dict[str, Change] = {}
    # metrics of one family tell one story; maps of heads tell more than bars of layers
    for change in sorted(moved, key=lambda change: change.series.values.ndim < 3):
        families.setdefault(change.series.spec.family, change)
    maps = [_changed(change) for change in list(families.values())[:_MAPS]]
    if not maps:
        maps = [(_map(series), Markup(""), "") for series in _headline_series(history, _MAPS)]
    steps = f"steps {history.steps[0]} to {history.steps[-1]}"
    return fragment(
        "shown_run.html.jinja",
        head=f"{_name(history)} · {len(history)} samples, {steps} · {describe_model(history)}",
        maps=maps,
        notes=["The headline metrics that changed most, at the last sample; lines: the model over the run."]
        if families
        else [],
        **_verdict(diagnosis),
    )


def _changed(change: Change) -> tuple[Markup, Markup, str]:
    """A metric's last map, its course, and its first and last value."""
    series = change.series
    spark = sparkline(series.model(), f"{series.key} over the run")
    return _map(series), spark, moved(change.first, change.last)


def _verdict(diagnosis: Diagnosis) -> dict[str, Any]:
    opened = [finding for finding in diagnosis if finding.until_step is None]
    # the verdict holds the first one's sentence
    return {
        "verdict": diagnosis.verdict,
        "level": worst(diagnosis.findings) or ("well" if diagnosis.checked else "plain"),
        "findings": [(span(finding), finding.message) for finding in opened[:_MAPS]]
        if len(opened) > 1
        else [],
    }


def _name(history: GeometryHistory) -> str:
    return "/".join(Path(history.path).parts[-2:]) or history.name


def _plot(history: GeometryHistory, metric: str, *, by: str, layer: int | None) -> Drawing:
    if by not in ("model", "layer", "head"):
        raise ArgumentError(f"Expected `by` to be 'model', 'layer' or 'head', but got {by!r}.")
    if layer is not None and by != "head":
        raise ArgumentError(f"Expected `layer` with by='head' only, but got layer={layer} with by={by!r}.")
    requested, steps = requested_series(history, metric), history.steps
    if by == "head":
        return _plot_heads(history, requested, metric, layer)
    pictures = []
    for series in requested:
        if by == "layer":
            pictures.append(layer_course(series, steps, limits(series), f"{series.key}, by layer"))
        pictures.append(model_course([(series.key, steps, series)], series.key))
    return drawing(
        f"{metric} of the {'layers' if by == 'layer' else 'model'}", pictures, _caption(requested[0])
    )


def _plot_heads(
    history: GeometryHistory, requested: list[MetricSeries], metric: str, layer: int | None
) -> Drawing:
    if requested[0].values.ndim != 3:
        raise ArgumentError(
            f"Expected `metric` to be one of heads with by='head', but {metric!r} is of layers."
        )
    layers = requested[0].values.shape[1]
    if layer is None:
        pictures = []
        for series in requested:
            change, ends = change_of(series, history.steps), limits(series)
            pictures += (
                head_maps(change, history.steps, ends, name=series.key)
                if change is not None
                else [_map(series)]
            )
        return drawing(f"{metric} of the heads", pictures, _caption(requested[0]))
    if not 0 <= layer < layers:
        raise ArgumentError(f"Expected `layer` to be from 0 to {layers - 1}, but got {layer}.")
    courses = [
        evolution(series.values[:, layer], history.steps, f"{series.key}, heads of layer {layer}",
                  *limits(series), diverging=series.spec.signed)
        for series in requested
        if np.isfinite(series.values[:, layer]).any()
    ]  # fmt: skip
    if not courses:
        raise ArgumentError(
            f"Expected `layer` to be one with a value of {metric!r}, but layer {layer} has none."
        )
    return drawing(f"{metric} of the heads of layer {layer}", courses, _caption(requested[0]))


def _caption(series: MetricSeries) -> str:
    unit = "" if series.spec.unit == "1" else f", in {series.spec.unit}"
    return f"{series.spec.title or series.spec.name}{unit}. {series.spec.meaning}"


def _report(history: GeometryHistory, *others: GeometryHistory) -> Page:
    runs = [
        Run(name, opened(one.path), one)
        for name, one in zip(_names(history, *others), (history, *others), strict=True)
    ]
    return Page(f"report on {runs[0].name}", report(runs))


def _names(*histories: GeometryHistory) -> list[str]:
    """Names that tell runs apart."""
    names = [_name(history) for history in histories]
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _diagnosis_html(diagnosis: Diagnosis) -> str:
    shown = _verdict(diagnosis)
    listed = [(span(finding), finding.message) for finding in diagnosis]
    notes = []
    if len(listed) > 1:
        shown["findings"] = listed
    elif listed:  # the verdict is its sentence
        notes.append(" ".join([f"{listed[0][0].capitalize()}.", *diagnosis.findings[0].next]))
    if diagnosis.unchecked:
        notes.append(f"{len(diagnosis.unchecked)} rules were not checked, since the run lacks their metrics.")
    head = f"{diagnosis.samples} samples, up to step {diagnosis.last_step}"
    return fragment("shown_run.html.jinja", head=head, maps=[], notes=notes, **shown)
