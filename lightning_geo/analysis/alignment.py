"""Pairs the samples of two runs by step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Alignment", "align"]


class Alignment(NamedTuple):
    """Pairs of samples of two runs.

    Args:
        a: Indices of the first run's samples.
        b: Indices of the second run's, as many.
        how: How they were paired, as text.
    """

    a: NDArray[np.intp]
    b: NDArray[np.intp]
    how: str


def align(a: NDArray[np.int64], b: NDArray[np.int64]) -> Alignment:
    """Pair the samples of two runs by step.

    A sample is paired with the nearest one of the other run, provided that each is the other's nearest. If at
    least half of the pairs are at equal steps, only those are kept.

    Args:
        a: Steps of the first run, ascending.
        b: Steps of the second run, ascending.

    Example:
        >>> align(np.array([0, 10, 20, 30]), np.array([0, 20])).how
        '2 common steps, 0 to 20'
        >>> align(np.array([0, 10, 20]), np.array([0, 11, 19])).how
        '3 pairs of nearest steps, at most 1 apart, 0 to 20'
    """
    of_a, of_b = _nearest(a, b), _nearest(b, a)
    near_a = np.flatnonzero(of_b[of_a] == np.arange(len(a)))
    near_b = of_a[near_a]
    common, at_a, at_b = np.intersect1d(a, b, return_indices=True)
    if 2 * len(common) >= len(near_a):
        plural = "s" if len(common) > 1 else ""
        return Alignment(at_a, at_b, f"{len(common)} common step{plural}, {_span(common)}")
    apart = int(np.abs(a[near_a] - b[near_b]).max())
    how = f"{len(near_a)} pairs of nearest steps, at most {apart} apart, {_span(a[near_a])}"
    return Alignment(near_a, near_b, how)


def _nearest(steps: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.intp]:
    """For each step the index of the nearest other one, the earlier of two; both inputs ascend."""
    after = np.searchsorted(others, steps).clip(max=len(others) - 1)
    before = (after - 1).clip(min=0)
    return np.where(np.abs(steps - others[before]) <= np.abs(steps - others[after]), before, after)


def _span(steps: NDArray[np.int64]) -> str:
    return f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
