"""Names under which numbers and pictures of a record appear in TensorBoard, W&B and other loggers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.key_metrics import key_metrics_by_stack
from lightning_geo.metrics.reductions import reduce_finite
from lightning_geo.metrics.selection import spec_of
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.record import GeometryRecord

__all__ = [
    "Headline",
    "Level",
    "group",
    "headlines",
    "key_values",
    "layer_range",
    "model_tag",
    "scalars",
]

Level = Literal["model", "layer", "head"]


class Headline(NamedTuple):
    """One metric of a record."""

    stack: str
    name: str  # as stored, ``effective_rank.query``
    spec: MetricSpec
    values: NDArray[Any]


def headlines(record: GeometryRecord) -> Iterator[Headline]:
    """Yield the headline metrics of a record, stack by stack."""
    for stack, arrays in record.stacks.items():
        for name, values in arrays.items():
            spec = spec_of(name, record.specs)
            if name in spec.headline:
                yield Headline(stack, name, spec, values)


def key_values(record: GeometryRecord, measured: Collection[str] | None = None) -> Iterator[Headline]:
    """Yield the metrics of a record whose model numbers loggers get.

    Args:
        record: One sample.
        measured: Stored names that the run measures; ``None`` where that is not known.
    """
    for stack, name in key_metrics_by_stack(list(record.stacks), measured, record.specs):
        values = record.stacks[stack].get(name)
        if values is not None:
            yield Headline(stack, name, spec_of(name, record.specs), values)


def model_tag(record: GeometryRecord, name: str, stack: str, metric: str) -> str:
    """Return ``geometry/<metric>``, with several stacks ``geometry/<stack>/<metric>``."""
    return f"{name}/{stack}/{metric}" if len(record.stacks) > 1 else f"{name}/{metric}"


def group(record: GeometryRecord, name: str, family: str, stack: str, metric: str) -> str:
    """Return ``geometry_<family>/<metric>``, with several stacks ``geometry_<family>/<stack>/<metric>``."""
    return f"{name}_{family}/{stack}/{metric}" if len(record.stacks) > 1 else f"{name}_{family}/{metric}"


def _layer_tag(prefix: str, layer: int, layers: int) -> str:
    """Return ``<prefix>/layer_03``; the number is as wide as the last layer's, so that tags sort."""
    return f"{prefix}/layer_{layer:0{max(2, len(str(layers - 1)))}d}"


def scalars(
    record: GeometryRecord,
    name: str = "geometry",
    level: Level = "model",
    measured: Collection[str] | None = None,
) -> dict[str, float]:
    """Return the scalars of a record by tag.

    ``geometry/<metric>`` for the model's key metrics, and ``geometry/coverage`` where the record has it. On
    request ``geometry_<family>/<metric>/layer_03`` for a layer's headline metrics (mean over its heads, or
    the maximum where the metric says so) and ``…/layer_03/head_05`` for a head's; with several stacks
    ``<stack>/<metric>``. Values that are not finite are left out.

    Args:
        record: One sample.
        name: The monitor's name, which replaces ``geometry``.
        level: Finest tags: ``"model"``, ``"layer"`` or ``"head"``.
        measured: Stored names that the run measures; ``None`` where that is not known.

    Example:
        >>> record = GeometryRecord({"encoder": {"entropy": np.ones((2, 4), np.float32)}})
        >>> sorted(scalars(record, level="layer"))
        ['geometry/entropy', 'geometry_entropy/entropy/layer_00', 'geometry_entropy/entropy/layer_01']
    """
    key_metrics = key_metrics_by_stack(list(record.stacks), measured, record.specs)
    shown = {model_tag(record, name, stack, metric) for stack, metric in key_metrics} | {f"{name}/coverage"}
    summaries = {f"{name}/{key}": value for key, value in record.summaries().items()}
    result = {tag: value for tag, value in summaries.items() if tag in shown}
    if level == "model":
        return result
    for stack, metric, spec, values in headlines(record):
        prefix = group(record, name, spec.family, stack, metric)
        tags = [_layer_tag(prefix, layer, len(values)) for layer in range(len(values))]
        result.update(_finite(tags, reduce_finite(values, spec.summary, keep=1)))
        if level == "head" and values.ndim == 2:
            width = max(2, len(str(values.shape[1] - 1)))
            for tag, row in zip(tags, values, strict=True):
                result.update(_finite([f"{tag}/head_{head:0{width}d}" for head in range(len(row))], row))
    return result


def layer_range(
    record: GeometryRecord, name: str = "geometry", measured: Collection[str] | None = None
) -> dict[str, float]:
    """Return the lowest and the highest layer of the key metrics, by tag.

    ``geometry_layers/<metric>/min`` and ``…/max``, with several stacks ``<stack>/<metric>``. A layer's number
    is the mean over its heads, so that ``geometry/<metric>`` lies between the two. Where it is the maximum,
    ``…/mean`` is there as well. A model of one layer has no range.

    Args:
        record: One sample.
        name: The monitor's name.
        measured: Stored names that the run measures; ``None`` where that is not known.

    Example:
        >>> record = GeometryRecord({"encoder": {"entropy": np.array([[1.0, 3.0], [5.0, 7.0]])}})
        >>> layer_range(record)
        {'geometry_layers/entropy/min': 2.0, 'geometry_layers/entropy/max': 6.0}
    """
    result: dict[str, float] = {}
    for stack, metric, spec, values in key_values(record, measured):
        layers = reduce_finite(values, spec.summary, keep=1)
        known = layers[np.isfinite(layers)]
        if len(layers) < 2 or not known.size:
            continue
        prefix = group(record, name, "layers", stack, metric)
        result[f"{prefix}/min"], result[f"{prefix}/max"] = float(known.min()), float(known.max())
        if spec.summary == "max":
            result[f"{prefix}/mean"] = float(known.mean())
    return result


def _finite(tags: list[str], values: NDArray[Any]) -> dict[str, float]:
    numbers = zip(tags, values.tolist(), np.isfinite(values).tolist(), strict=True)
    return {tag: value for tag, value, finite in numbers if finite}
