"""The sums of some of a layer's heads at their places among all heads, so that ranks add up to the layer."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.measurement.sums import LayerSums
from lightning_geo.metrics.selection import spec_of
from lightning_geo.observe import HeadSlice

__all__ = ["place_heads"]


def place_heads(layer: LayerSums) -> None:
    """Put the sums of a slice of a layer's heads at their places, in place: nothing for the other heads.

    What describes the layer as a whole is the same on all ranks that have a slice. Means and ratios may count
    it once for each; the number of tokens belongs to sums of one head each, and counts once.
    """
    own, layer.slice = layer.slice, HeadSlice()
    if own.count == 1:
        return
    for name, x in layer.sums.items():
        names, part = layer.names.get(name), name.rpartition(".")[2]
        if names is not None:
            if len(spec_of(names[0]).axes) == 2:
                layer.sums[name] = _placed(x, -1, own)
        elif name == "heads.sketch":
            layer.sums[name] = _placed(x, -1, own)
        elif part in ("sum", "second"):
            layer.sums[name] = _placed(x, 0, own)
        elif part in ("count", "signs") and own.index:
            layer.sums[name] = torch.zeros_like(x)
    layer.maxima = {name: _placed(x, -1, own, -torch.inf) for name, x in layer.maxima.items()}
    layer.heads *= own.count


def _placed(x: Tensor, axis: int, own: HeadSlice, nothing: float = 0.0) -> Tensor:
    shape, size = list(x.shape), x.shape[axis]
    shape[axis] = size * own.count
    whole = x.new_full(shape, nothing)
    whole.narrow(axis, own.index * size, size).copy_(x)
    return whole
