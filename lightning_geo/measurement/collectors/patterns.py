"""Attention patterns: where each head looks in one sequence, pooled to a few cells."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_geo.kernels.pooled import pooled_attention
from lightning_geo.measurement.call_statistics import observed_scores
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.sums import LayerSums
from lightning_geo.observe import AttentionCall, CallKey
from lightning_geo.storage.patterns import CELLS

__all__ = ["Patterns"]


class _Pooled(NamedTuple):
    """[H, c, c], its number of real tokens [1], and their ids [N], -1 in padding; None if unknown."""

    attention: Tensor
    tokens: Tensor
    ids: Tensor | None


class Patterns(Collector):
    """Patterns of the first sequence of each layer's first call, in self-attention alone.

    They are no sums: one rank has them, and they take no part in what ranks add up. Attention whose queries
    have no known place among the keys has none.
    """

    def __init__(self) -> None:
        super().__init__(())
        self._pooled: dict[CallKey, _Pooled] = {}

    def attention(self, layer: LayerSums, key: CallKey, call: AttentionCall) -> None:
        """Pool a call's first sequence, which of a packed call is its first document."""
        batch, queries, keys = call.lengths
        first = call.portion is None or call.portion.numbers[0] == 0
        square = not call.cross and call.offset == 0 and queries == keys
        if key in self._pooled or not (first and square and batch and keys):
            return
        attention, tokens = pooled_attention(observed_scores(call, 1).attended, CELLS)
        ids = None if call.ids is None else call.ids[0]
        if ids is not None and call.query_mask is not None:
            ids = torch.where(call.query_mask[0], ids, -1)
        self._pooled[key] = _Pooled(attention[0], tokens, ids)

    def zero(self) -> None:
        """Forget what was pooled."""
        self._pooled.clear()

    def derive(self, stack: DerivedStack) -> None:
        """Let the patterns go with the sample's transfer."""
        for index, key in stack.keys.items():
            pooled = self._pooled.get(key)
            if pooled is not None:
                tensors = [part for part in pooled if part is not None]
                stack.deferred.append((tensors, partial(stack.patterns.__setitem__, index)))
