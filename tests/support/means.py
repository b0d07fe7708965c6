"""Means of a sample's sums, as metrics are derived from them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.measurement.sums import LayerSums


def means_of(sample: SampleStatistics, key: Any) -> dict[str, Tensor]:
    """The means by metric of one layer, or of one block."""
    sample.settle()
    sums: dict[Any, LayerSums] = {**sample.layers, **sample.blocks}
    stack = DerivedStack({}, {}, [], rank=1, baseline=None, previous=None)
    stack.add_means({0: sums[key]})
    return {name: values[0, place] for names, _, values in stack.values for place, name in enumerate(names)}
