"""Checks whether an attention call's masks hide the keys of other documents from a document's queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.spans import Spans

__all__ = ["joined_rows", "varies_by_query"]

#: Query-key pairs checked in one step.
_PAIRS = 1 << 24


def varies_by_query(mask: Any) -> bool:
    """Whether a mask may hide a key from some queries but not from others."""
    if isinstance(mask, Tensor):
        # Stride 0: a padding mask expanded over queries, the same for all.
        return mask.dim() >= 2 and min(mask.shape[-2:]) > 1 and mask.stride(-2) != 0
    return isinstance(mask, BlockMask)


def joined_rows(call: AttentionCall, spans: Spans) -> list[bool]:
    """Return for each row whether some query may attend to a key of another document."""
    batch, length, _ = call.lengths
    labels = np.full(batch * length, -1)
    for number, (start, stop) in enumerate(spans):
        labels[start:stop] = number
    documents = torch.from_numpy(labels).to(call.device).view(batch, length)
    real = documents >= 0
    if call.query_mask is not None:
        real = real & call.query_mask
    rules = [_pair_rule(mask, length) for mask in call.masks if varies_by_query(mask)]
    columns = torch.arange(length, device=call.device)
    together = torch.zeros(batch, dtype=torch.bool, device=call.device)
    step = max(1, _PAIRS // (batch * length))
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        seen = real[:, rows, None] & (documents[:, rows, None] != documents[:, None, :])
        if call.is_causal:
            seen = seen & (columns <= columns[rows, None])
        for rule in rules:
            seen = seen & rule(rows)
        together |= seen.flatten(1).any(1)
    joined: list[bool] = together.tolist()
    return joined


def _pair_rule(mask: Any, length: int) -> Callable[[slice], Tensor]:
    """Return ``rows -> [B or 1, rows, Nk]``, the keys that these rows see in any head."""
    from lightning_geo.kernels import HIDDEN_BELOW, BlockRule

    if isinstance(mask, BlockMask):
        rule = BlockRule.of(mask)
        batch, heads = rule.blocks.shape[:2]
        every = slice(0, batch), slice(0, heads)
        return lambda rows: rule.visible(*every, rows, slice(0, length)).any(1)
    if mask.dim() > 2 and mask.stride(-3) == 0:  # all heads share one mask
        mask = mask.narrow(-3, 0, 1)
    four = mask[(None,) * (4 - mask.dim())]

    def visible(rows: slice) -> Tensor:
        part = four[:, :, rows]
        seen: Tensor = (part if part.dtype == torch.bool else part > HIDDEN_BELOW).any(1)
        return seen

    return visible
