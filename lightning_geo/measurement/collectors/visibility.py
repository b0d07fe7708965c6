"""What masks let attention see: later tokens, and padding; no probability is computed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_geo.functional._tensors import exact_dtype
from lightning_geo.kernels.checks import window_sides
from lightning_geo.kernels.visible_pairs import Sight, visible_pairs
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.sums import LayerSums
from lightning_geo.observe import AttentionCall, CallKey

__all__ = ["Visibility", "pairs_of"]

_SUMS = "visibility"


class Visibility(Collector):
    """Pairs of queries and keys that masks leave visible, of self-attention.

    Args:
        metrics: Stored names of the metrics to measure.
        trained: Pairs that the training forward saw, by attention call, where this sample is another one.
    """

    offers = frozenset({"future.visible", "future.pairs", "padding.visible", "padding.pairs"})

    def __init__(self, metrics: tuple[str, ...], trained: Mapping[CallKey, Tensor] | None = None) -> None:
        super().__init__(metrics)
        parts = {part: tuple(n for n in metrics if n.endswith(f".{part}")) for part in ("probe", "batch")}
        #: metrics of what this sample observes: the probe, or else the batch
        self._own = parts["probe"] or parts["batch"]
        self._trained = {} if trained is None else trained
        self._other = parts["batch"] if parts["probe"] else ()

    def attention(self, layer: LayerSums, key: CallKey, call: AttentionCall) -> None:
        if not key.cross and self._own:  # on every rank, whatever documents its rows hold
            layer.add(_SUMS, pairs_of(call))

    def derive(self, stack: DerivedStack) -> None:
        own = {index: layer.sums[_SUMS] for index, layer in stack.layers.items() if _SUMS in layer.sums}
        trained = {i: self._trained[key] for i, key in stack.keys.items() if key in self._trained}
        for names, sums in ((self._own, own), (self._other, trained)):
            if not sums or not names:
                continue
            future, padding, futures, paddings = torch.stack([*sums.values()], 1)
            quantities = {
                "future.visible": future, "future.pairs": futures,
                "padding.visible": padding, "padding.pairs": paddings,
            }  # fmt: skip
            for name in names:
                stack.add(name, [*sums], self.value(name, quantities, (len(sums),)))


def pairs_of(call: AttentionCall) -> Tensor:
    """The pairs of a self-attention, ``[4]`` as :func:`.visible_pairs` counts them; 0 without positions."""
    batch, queries, keys = call.lengths
    if call.offset is None or call.cross:
        nothing = torch.zeros(4, device=call.device)
        return nothing.to(exact_dtype(nothing))
    left, right = window_sides(call.window)
    right = 0 if call.is_causal else right
    sight = Sight(batch, queries, keys, call.offset, left, right, call.has_padding_mask)
    return visible_pairs(sight, call.masks, call.query_mask, call.key_mask, call.padding, call.device)
