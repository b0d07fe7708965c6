"""The pictures of one metric over a run, on one scale: heads, layers over the run, and the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lightning_geo.analysis.changes import Change
from lightning_geo.analysis.runs import MetricSeries
from lightning_geo.report.charts import lines
from lightning_geo.report.figures import evolution, matrix
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.formatting import number

__all__ = ["differences_side_by_side", "head_maps", "layer_course", "limits", "model_course"]

#: Lowest and highest value of a picture's colours.
_Limits = tuple[float, float]


def limits(*series: MetricSeries) -> _Limits:
    """Return the ends of the colours of a metric, equal for all pictures that are to be compared.

    A metric whose sign says most has 0 in the middle. The whole possible range is taken where the values fill
    half of it.

    Args:
        series: The metric in each run; at least one.
    """
    values = np.concatenate([one.values.ravel() for one in series])
    spec = series[0].spec
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    if spec.signed:
        high = max(-low, high)
        low = -high
    least, most = spec.range
    if least is not None and most is not None and high - low > (most - least) / 2:
        return least, most
    return low, high


def head_maps(
    change: Change,
    steps: NDArray[np.int64],
    ends: _Limits,
    other: tuple[MetricSeries, int] | None = None,
    name: str = "",
) -> list[Markup]:
    """Return the heads at the start, at the end, in another run, and what they changed by.

    Args:
        change: Of the metric.
        steps: Of the run.
        ends: Of the colours, from :func:`limits`.
        other: The metric in another run, and the step of its last sample.
        name: Before what each map is of.
    """
    series, signed, prefix = change.series, change.series.spec.signed, f"{name}, " * bool(name)
    # drift is 0 at the start, and its own change
    drift = series.name.startswith("drift")
    known = np.flatnonzero(np.isfinite(series.values.reshape(len(steps), -1)).any(axis=1))
    shown = [known[-1]] if drift else [known[0], known[-1]]
    pictures = [matrix(series.values[i], f"{prefix}step {steps[i]}", *ends, diverging=signed) for i in shown]
    if other is not None:
        pictures.append(matrix(other[0].values[-1], f"B, step {other[1]}", *ends, diverging=signed))
    if not drift:
        most = float(np.nanmax(np.abs(change.cells))) or 1.0
        pictures.append(matrix(change.cells, f"{prefix}change", -most, most, diverging=True))
    return pictures


def layer_course(series: MetricSeries, steps: NDArray[np.int64], ends: _Limits, title: str) -> Markup:
    """Return the layers over the run, on the scale of the heads."""
    return evolution(series.layers(), steps, title, *ends, diverging=series.spec.signed)


def model_course(curves: Sequence[tuple[str, NDArray[np.int64], MetricSeries]], title: str = "") -> Markup:
    """Return the model's mean or maximum in each run; a single run also gets the band of its heads or layers.

    Args:
        curves: Name, steps and metric of each run.
        title: Before what is drawn.
    """
    series = curves[0][2]
    middle = f"{title}, " * bool(title) + ("maximum" if series.spec.summary == "max" else "mean")
    drawn = [(name, steps, one.model()) for name, steps, one in curves]
    if len(curves) > 1:
        return lines(drawn, f"model {middle}, by run")
    flat = series.values.reshape(len(series.values), -1)
    defined = np.isfinite(flat).any(axis=1)
    band = np.full((2, len(flat)), np.nan)
    if defined.any():
        band[:, defined] = np.nanpercentile(flat[defined], (10, 90), axis=1)
    cells = "heads" if series.values.ndim == 3 else "layers"
    return lines(drawn, f"{middle} and 10–90 % of {cells}", (band[0], band[1]))


def differences_side_by_side(
    a: Array, b: Array, difference: Array, title: str, *, signed: bool = False
) -> list[Markup]:
    """Return a metric in two runs on one scale, and their difference.

    Args:
        a: [layer] or [layer, head] of the first run.
        b: The same of the second.
        difference: ``b − a``.
        title: The metric.
        signed: Whether its sign says most.
    """
    both = np.concatenate([a[np.isfinite(a)], b[np.isfinite(b)]])
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    if signed:
        low, high = -max(-low, high), max(-low, high)
    end = float(np.nanmax(np.abs(difference))) if np.isfinite(difference).any() else 1.0
    end = end or 1.0
    return [
        matrix(a, f"{title}, A", low, max(high, low + 1e-12), diverging=signed),
        matrix(b, f"{title}, B", low, max(high, low + 1e-12), diverging=signed),
        matrix(difference, f"B − A, at most {number(end, digits=3)}", -end, end, diverging=True),
    ]
