"""Differences between the numbers of one metric in two runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_geo.metrics.reductions import root_mean_square
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.utils.arrays import Array

__all__ = ["Difference", "Row"]


class Row(NamedTuple):
    """One number of two runs.

    Args:
        metric: Name, with the stack before it where there are several.
        layer: Number of the layer.
        head: Number of the head; ``None`` where the metric has none.
        a: Value in the first run.
        b: Value in the second run.
        difference: ``b − a``.
        moved_a: Highest minus lowest value within the first run.
        moved_b: The same within the second run.
        relative: The difference in units of how much the metric moves, see :class:`Difference`.
    """

    metric: str
    layer: int
    head: int | None
    a: float
    b: float
    difference: float
    moved_a: float
    moved_b: float
    relative: float


@dataclass(frozen=True)
class Difference:
    """One metric of two runs at one step; all arrays are [layer] or [layer, head].

    Args:
        metric: Name, with the stack before it where there are several.
        spec: The metric.
        a: Values of the first run.
        b: Values of the second run.
        moved_a: Highest minus lowest value within the first run.
        moved_b: The same within the second run.
    """

    metric: str
    spec: MetricSpec
    a: Array
    b: Array
    moved_a: Array
    moved_b: Array

    @property
    def difference(self) -> Array:
        """``b − a``."""
        return self.b - self.a

    @property
    def movement(self) -> float:
        """How much the metric moves within a run: root mean square of both runs' movements, all cells."""
        movement = float(root_mean_square(np.stack([self.moved_a, self.moved_b])))
        return movement if np.isfinite(movement) else 0.0

    @property
    def relative(self) -> Array:
        """The difference in units of :attr:`movement`, which makes metrics of all units comparable.

        The unit is the metric's and not the cell's: a head that hardly moves in either run would come first
        otherwise, whatever it does.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.difference == 0, 0.0, self.difference / self.movement)

    @property
    def one_sided(self) -> int:
        """The number of cells that have a value in one run alone."""
        return int((np.isfinite(self.a) != np.isfinite(self.b)).sum())

    def rows(self) -> Iterator[Row]:
        """Yield every cell that has a value in both runs."""
        difference, relative = self.difference, self.relative
        for cell in zip(*np.nonzero(np.isfinite(difference)), strict=True):
            head = int(cell[1]) if len(cell) > 1 else None
            numbers = (self.a, self.b, difference, self.moved_a, self.moved_b, relative)
            yield Row(self.metric, int(cell[0]), head, *(float(array[cell]) for array in numbers))
