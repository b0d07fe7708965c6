"""Scales of pictures: what a colour means, the same over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.spec import MetricSpec

__all__ = ["PictureScale", "PictureScales"]

_Values = NDArray[np.float64]

_SHARES = (0.02, 0.98)
_NEAR = 0.5  # of the distance between the two quantiles: what lies beyond them by less is no outlier
_STEPS = 10  # of a scale, at most about


@dataclass(frozen=True)
class PictureScale:
    """A scale from ``low`` to ``high``.

    Args:
        low: Value of the first colour; what lies below has it too.
        high: Value of the last colour, in the same way.
        log_from: Distances from this number are compared by their logarithms; ``None`` for values.
    """

    low: float
    high: float
    log_from: float | None = None

    def shares(self, values: NDArray[Any]) -> _Values:
        """How far along the scale values lie, from 0 to 1; 0 for what is not finite."""
        start, end = self._place(np.array([self.low, self.high]))
        known = np.where(np.isfinite(values), values, self.low)
        shares: _Values = (self._place(known.astype(np.float64)) - start) / (end - start)
        return shares.clip(0, 1)

    def value(self, share: float) -> float:
        """The value at a share of the way along the scale."""
        start, end = self._place(np.array([self.low, self.high]))
        place = float(start + share * (end - start))
        return place if self.log_from is None else math.exp(place) + self.log_from

    def _place(self, values: _Values) -> _Values:
        if self.log_from is None:
            return values
        places: _Values = np.log(np.maximum(values - self.log_from, np.finfo(np.float64).tiny))
        return places


class PictureScales:
    """The scales of a run's pictures: each begins as that of its first picture, and widens in round steps.

    Where a metric's definition bounds it, the bound is the scale's end. Otherwise the scale reaches from the
    2nd to the 98th percentile and on to values that lie near, rounded outwards: outliers are beyond. Later
    pictures whose own scale goes further move that end, and never back.

    Args:
        ends: Tag of a picture -> the ends of its scale, as another session left them. Kept up to date.

    Example:
        >>> from lightning_geo.metrics.catalog import CATALOG
        >>> scales = PictureScales()
        >>> for values in ([0.5, 3.7], [1.0, 2.0], [1.0, 4.2]):
        ...     print(scales.of("entropy", np.array([values]), CATALOG["entropy"]).high)
        4.0
        4.0
        4.5
    """

    def __init__(self, ends: dict[str, list[float]] | None = None) -> None:
        self._ends = {} if ends is None else ends

    def of(self, tag: str, values: NDArray[Any], spec: MetricSpec) -> PictureScale:
        """Return the scale of a picture, and remember it.

        Args:
            tag: Of the picture.
            values: What it shows.
            spec: The metric.
        """
        bound = spec.range if spec.log_from is None else (None, None)
        if bound[0] is not None and bound[1] is not None:
            return PictureScale(bound[0], bound[1])
        known = values[np.isfinite(values)].astype(np.float64)
        log_from = spec.log_from
        if log_from is not None:
            known = known[known > log_from]
            log_from = log_from if known.size or tag in self._ends else None
        if known.size:
            self._ends[tag] = _widened(self._ends.get(tag), _spread(known, log_from), log_from)
        low, high = self._ends.get(tag, [0.0, 1.0])
        low, high = (b if b is not None else end for b, end in zip(bound, (low, high), strict=True))
        return PictureScale(low, high if high > low else low + 1, log_from)


def _spread(known: _Values, log_from: float | None) -> tuple[float, float]:
    """The ends of a scale without its outliers."""
    places = np.sort(known if log_from is None else np.log(known - log_from))
    low, high = (places[round(share * (places.size - 1))] for share in _SHARES)
    near = places[(places >= low - _NEAR * (high - low)) & (places <= high + _NEAR * (high - low))]
    ends = (near if high > low else places)[[0, -1]]
    low, high = ends if log_from is None else np.exp(ends) + log_from
    return float(low), float(high)


def _widened(kept: list[float] | None, ends: tuple[float, float], log_from: float | None) -> list[float]:
    """Ends that hold others as well; those that move are round."""
    low, high = ends if kept is None else (min(kept[0], ends[0]), max(kept[1], ends[1]))
    round_low, round_high = _rounded(low, high) if log_from is None else (
        log_from + _round_number(low - log_from, up=False), log_from + _round_number(high - log_from, up=True)
    )  # fmt: skip
    if kept is None:
        return [round_low, round_high]
    return [round_low if low < kept[0] else kept[0], round_high if high > kept[1] else kept[1]]


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Multiples of a round step around two numbers; apart, even if the numbers are the same."""
    step = _round_number((high - low) / _STEPS or abs(high) / _STEPS or 1.0, up=True)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return float(f"{first * step:.12g}"), float(f"{max(last, first + 1) * step:.12g}")


def _round_number(size: float, *, up: bool) -> float:
    """The next of 1, 2, 5, 10, 20, 50, … (or 0.5, 0.2, 0.1, …), upwards or downwards."""
    power = 10.0 ** math.floor(math.log10(size))
    steps = [float(f"{m * power:.3g}") for m in (1, 2, 5, 10)]
    if up:
        return next(step for step in steps if step >= size * (1 - 1e-9))
    return next(step for step in reversed(steps) if step <= size * (1 + 1e-9))
