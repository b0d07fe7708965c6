"""Bases of subspaces: of all layers of a stack, and compared with others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.metrics.registry import metric_function, reads_of

__all__ = ["compare_bases", "stacked_bases"]


def compare_bases(stack: DerivedStack, metrics: Iterable[str]) -> None:
    """Add how two roles' subspaces, or one role's at two samples, lie to each other."""
    own = stack.bases
    for name in metrics:
        role, reads = name.rpartition(".")[2], reads_of(name)
        others = {
            "basis": own.get(role),
            "basis.query": own.get("query"),
            "basis.key": own.get("key"),
            "basis.baseline": (own if stack.baseline is None else stack.baseline).get(role),
            "basis.previous": (stack.previous or {}).get(role),
        }
        first, second = (others[quantity] for quantity in reads)
        if first is None or second is None or first.shape != second.shape:
            continue
        indices = sorted(stack.layers)
        now, then = (_of_layers(basis.to(first.device), indices) for basis in (first, second))
        values = metric_function(name)(now, then)
        if second is first:  # against itself: rounding is no drift, but NaN stays
            values = values * 0.0
        elif "basis" in reads:
            # a layer that lost heads has numbered them anew: no head is to be compared with another
            same = _last_head(now) == _last_head(then)
            values = values.masked_fill(~same[:, None], torch.nan)
        stack.add(name, indices, values)


def stacked_bases(parts: Iterable[tuple[list[int], Tensor]], size: int, heads: int) -> Tensor:
    """Bases [layer, head, feature, component] from those of some layers each, NaN where a layer has none."""
    parts = list(parts)
    features = max(basis.shape[2] for _, basis in parts)
    if len(parts) == 1 and parts[0][1].shape[:2] == (size, heads):
        return parts[0][1]
    example = parts[0][1]
    result = example.new_full((size, heads, features, example.shape[-1]), torch.nan)
    for indices, bases in parts:
        for index, basis in zip(indices, bases, strict=True):
            result[index, : basis.shape[0]] = 0.0  # smaller heads live in the first features
            result[index, : basis.shape[0], : basis.shape[1]] = basis
    return result


def _of_layers(bases: Tensor, indices: list[int]) -> Tensor:
    if len(indices) == len(bases):
        return bases
    return torch.stack([bases[index] for index in indices])  # a list as index would wait for a GPU


def _last_head(bases: Tensor) -> Tensor:
    """[layer], one more than the number of each layer's last head that has a basis."""
    there = ~bases.isnan().flatten(2).all(-1)
    return (there * torch.arange(1, there.shape[1] + 1, device=there.device)).amax(1)
