"""Changes within a run, with place and time, in numbers. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.runs import MetricSeries, metric_series
from lightning_geo.metrics.reductions import reduce_finite, root_mean_square
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.storage.history import GeometryHistory

__all__ = [
    "FOCUSED",
    "TWIN",
    "Change",
    "HeadCount",
    "RotationSpeed",
    "change_of",
    "changes",
    "head_counts",
    "layer_changes",
    "rotation_speed",
]

#: Normalised entropy below which a head attends to essentially one token.
FOCUSED = 0.05

#: Redundancy above which a head has a near-duplicate in its layer.
TWIN = 0.95


class Change(NamedTuple):
    """How one metric changed between a run's first and last sample.

    Args:
        series: The metric.
        first: Model mean (or maximum) at the first sample that has a value.
        last: The same at the last sample that has one.
        cells: [layer] or [layer, head], last minus first.
        most: Layer and head that changed most; head ``None`` for a metric of layers.
        size: Root mean square of ``cells``, in units of the spread over layers and heads at the start.
        half: First step at which the layers and heads had moved half of their final distance.
    """

    series: MetricSeries
    first: float
    last: float
    cells: NDArray[np.float64]
    most: tuple[int, int | None]
    size: float
    half: int

    @property
    def most_change(self) -> float:
        """Change of the cell that changed most."""
        return float(self.cells[self._most])

    @property
    def most_ends(self) -> tuple[float, float]:
        """First and last value of the cell that changed most."""
        course = np.moveaxis(self.series.values, 0, -1)[self._most]
        start, end = course[np.isfinite(course)][[0, -1]]
        return float(start), float(end)

    @property
    def _most(self) -> tuple[int, ...]:
        layer, head = self.most
        return (layer,) if head is None else (layer, head)


def change_of(series: MetricSeries, steps: NDArray[np.int64]) -> Change | None:
    """Return how a metric changed, or None where no layer has two samples of it."""
    known = np.flatnonzero(np.isfinite(series.values.reshape(len(series.values), -1)).any(axis=1))
    if len(known) < 2:
        return None
    values, model, steps = series.values[known], series.model()[known], steps[known]
    cells = values[-1] - values[0]
    if not np.isfinite(cells).any():
        return None
    place = np.unravel_index(int(np.nanargmax(np.abs(cells))), cells.shape)
    way = np.nan_to_num(reduce_finite(np.abs(values - values[0]), keep=1))
    spread = float(np.nanstd(values[0]))
    rms = float(root_mean_square(cells))
    return Change(
        series, float(model[0]), float(model[-1]), cells,
        (int(place[0]), int(place[1]) if len(place) > 1 else None),
        rms / spread if spread > 1e-12 else float("nan"),
        int(steps[np.argmax(way >= way[-1] / 2)]),
    )  # fmt: skip


def changes(history: GeometryHistory) -> list[Change]:
    """Return the changes of the headline metrics: first drift, which is a change itself, then the largest."""
    headline = [
        change
        for series in metric_series(history)
        if series.name in series.spec.headline and (change := change_of(series, history.steps)) is not None
    ]
    return sorted(headline, key=lambda c: (not compares_samples(c.series.name), -np.nan_to_num(c.size)))


def layer_changes(all_changes: Sequence[Change]) -> list[tuple[str, NDArray[np.float64]]]:
    """Return how much each layer changed, by stack, where 1 is the average.

    Each metric's changes are divided by their root mean square, so that all metrics count alike; a layer's
    number is the root mean square over metrics and heads.
    """
    shares: dict[str, list[NDArray[np.float64]]] = {}
    for change in all_changes:
        unit = root_mean_square(change.cells)
        if unit > 0:
            shares.setdefault(change.series.stack, []).append(root_mean_square(change.cells, keep=1) / unit)
    # stacked as [layer, metric], so that the mean over metrics leaves one number per layer
    return [(stack, root_mean_square(np.stack(layers, axis=1), keep=1)) for stack, layers in shares.items()]


class HeadCount(NamedTuple):
    """How many heads are focused on one token, or have a near-duplicate.

    Args:
        series: ``normalized_entropy`` or ``redundancy``.
        first: Heads below :data:`FOCUSED`, or above :data:`TWIN`, at the first sample.
        last: The same at the last sample.
        heads: Heads that have a value at the last sample.
    """

    series: MetricSeries
    first: int
    last: int
    heads: int


def head_counts(history: GeometryHistory) -> Iterator[HeadCount]:
    """Yield the counts of focused and of duplicated heads that are not zero throughout, by stack."""
    for series in metric_series(history):
        first, last = series.values[0], series.values[-1]
        if series.name == "normalized_entropy":
            counts = int((first < FOCUSED).sum()), int((last < FOCUSED).sum())
        elif series.name == "redundancy":
            counts = int((first > TWIN).sum()), int((last > TWIN).sum())
        else:
            continue
        heads = int(np.isfinite(last).sum())
        if heads and any(counts):
            yield HeadCount(series, *counts, heads)


class RotationSpeed(NamedTuple):
    """How fast the subspaces turn, as the mean of all roles' velocities.

    Args:
        last: Between the last two full samples.
        fastest: The largest between any two.
        fastest_step: The later step of those two.
        key: The metric; empty where it is several.
    """

    last: float
    fastest: float
    fastest_step: int
    key: str


def rotation_speed(history: GeometryHistory) -> RotationSpeed | None:
    """Return how fast the subspaces turn at the end of a run, or None with fewer than three velocities.

    A last sample soon after another one leaves the subspaces less time to turn: samples whose interval is
    shorter than 0.9 of the median one do not count.
    """
    velocities = [series for series in metric_series(history) if series.spec.name == "velocity"]
    if not velocities:
        return None
    curves = np.array([series.model() for series in velocities])
    known = np.flatnonzero(np.isfinite(curves).all(axis=0))
    gaps = np.diff(history.steps, prepend=history.steps[0])
    known = known[(gaps[known] >= 0.9 * np.median(gaps[1:])) & (known > 0)] if len(gaps) > 1 else known[:0]
    if len(known) < 3:
        return None
    mean = curves[:, known].mean(axis=0)
    peak = int(np.argmax(mean))
    key = velocities[0].key if len(velocities) == 1 else ""
    return RotationSpeed(float(mean[-1]), float(mean[peak]), int(history.steps[known[peak]]), key)
