"""Layer × step pictures: how the layers of a metric moved over the run, in one picture."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.loggers.picture_scale import PictureScales
from lightning_geo.loggers.pictures import draw
from lightning_geo.loggers.tags import group, key_values
from lightning_geo.metrics.reductions import reduce_finite
from lightning_geo.metrics.selection import spec_of
from lightning_geo.storage.record import GeometryRecord

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LayerCourse"]

_COLUMNS = 64  # steps in a picture at most


class _Sample(NamedTuple):
    place: int  # among all samples
    step: int
    layers: dict[tuple[str, str], NDArray[np.float64]]  # by stack and stored name, [layer]


class LayerCourse:
    """The layers' numbers of a run's key metrics, thinned evenly: the first and the last sample always stay.

    Args:
        name: The monitor's name.
        measured: Stored names that the run measures; ``None`` where that is not known.
        scales: Of the run's pictures.

    Example:
        >>> course = LayerCourse()
        >>> for step in range(1000):
        ...     course.add(GeometryRecord({"encoder": {"entropy": np.ones((2, 4))}}, step=step))
        >>> len(course.steps), course.steps[:3], course.steps[-1]
        (64, [0, 16, 32], 999)
    """

    def __init__(
        self,
        name: str = "geometry",
        measured: Collection[str] | None = None,
        scales: PictureScales | None = None,
    ) -> None:
        self._name, self._measured = name, measured
        self._scales = PictureScales() if scales is None else scales
        self._samples: list[_Sample] = []
        self._every = 1
        self._count = 0
        self._last: GeometryRecord | None = None

    @property
    def steps(self) -> list[int]:
        """Steps of the samples that are kept."""
        return [sample.step for sample in self._samples]

    def add(self, record: GeometryRecord) -> None:
        """Take a sample."""
        if self._samples and self._samples[-1].place % self._every:
            self._samples.pop()  # it was kept only as the last one
        layers = {
            (stack, metric): reduce_finite(values, spec.summary, keep=1)
            for stack, metric, spec, values in key_values(record, self._measured)
        }
        self._samples.append(_Sample(self._count, record.step, layers))
        self._count, self._last = self._count + 1, record
        if len(self._samples) > _COLUMNS:
            self._every *= 2
            last = self._samples[-1].place
            self._samples = [s for s in self._samples if s.place % self._every == 0 or s.place == last]

    def pictures(self) -> Iterator[tuple[str, Image]]:
        """Yield title and picture of each metric that has two samples or more."""
        record, steps = self._last, self.steps
        if record is None or len(steps) < 2:
            return
        for stack, metric in dict.fromkeys(key for sample in self._samples for key in sample.layers):
            rows = [sample.layers.get((stack, metric)) for sample in self._samples]
            known = [row for row in rows if row is not None]
            if len(known) < 2 or len({len(row) for row in known}) > 1:
                continue  # a picture of one column, or of another model
            absent = np.full(len(known[0]), np.nan)
            values: NDArray[Any] = np.stack([absent if row is None else row for row in rows], axis=1)
            spec = spec_of(metric, record.specs)
            tag = group(record, self._name, "layers", stack, metric)
            title = tag.partition("/")[2]
            scale = self._scales.of(tag, values, spec)
            yield title, draw(values, spec, title, steps[-1], tuple(map(str, steps)), scale, across="step")
