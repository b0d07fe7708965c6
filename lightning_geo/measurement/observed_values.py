"""Values of single metrics from what one attention call, layer or projection showed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_geo.functional import (
    AttentionStatistics,
    HeadMoments,
    HeadReads,
    HeadWeights,
    StreamStatistics,
)
from lightning_geo.measurement.call_statistics import (
    ObservedScores,
)
from lightning_geo.measurement.sums import LayerStatistics
from lightning_geo.metrics.registry import metric_function, reads_of
from lightning_geo.metrics.selection import spec_of
from lightning_geo.observe import AttentionCall

__all__ = ["add_cones", "planes_of", "reads_by_document", "value_of"]


def planes_of(names: Iterable[str], statistics: AttentionStatistics | StreamStatistics) -> dict[str, Tensor]:
    """The metrics of kind ``row`` or ``tokens`` that these statistics have the fields for."""
    planes = {}
    for name in names:
        fields = [getattr(statistics, field) for field in reads_of(name)]
        if all(field is not None for field in fields):
            planes[name] = metric_function(name)(*fields)
    return planes


def reads_by_document(
    call: AttentionCall,
    role: str,
    read: tuple[Tensor, Tensor | None, Tensor | None],
    weight: Tensor,
    heads: int,
) -> list[HeadReads]:
    """What a role's projection was given, by sequence or by document; nothing where the tokens are others."""
    x, y, bias = read
    mask = call.query_mask if role == "query" else call.key_mask
    if mask is not None and mask.shape != x.shape[:2]:
        return []
    if call.documents is None:
        return [HeadReads(x, weight, y, bias, mask, heads)]
    if x.shape[:2] != (call.lengths[0], call.lengths[2 if role != "query" else 1]):
        return []
    keys = role != "query"
    xs = call.documents.split_hidden(x, mask, keys=keys)
    ys = [(None, None)] * len(xs) if y is None else call.documents.split_hidden(y, keys=keys)
    return [HeadReads(a, weight, b, bias, m, heads) for (a, m), (b, _) in zip(xs, ys, strict=True)]


def value_of(name: str, given: HeadWeights | ObservedScores) -> Tensor:
    """Return what a metric makes of weights or scores, or one part of it."""
    parts = (name.rpartition(".")[2],) if spec_of(name).parts else ()
    values: Tensor = metric_function(name)(given, *parts)
    return values


def add_cones(
    layer: LayerStatistics,
    stage: str,
    names: list[str],
    statistics: HeadMoments | StreamStatistics,
    valid: Tensor,
) -> None:
    """Add what metrics of the cone make of the sum of tokens' directions at a stage."""
    directions = statistics.directions, valid, statistics.directed
    values = torch.stack([metric_function(name)(*directions) for name in names])
    layer.add_values(stage, tuple(names), values)
