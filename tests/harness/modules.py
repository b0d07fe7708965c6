"""Attention by torch's own modules: what they are given is seen by hooks, in a run of the harness's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.attention import Seen, note
from harness.description import MODULES, Description
from harness.visibility import Plan, encode

__all__ = ["MultiHead", "TorchStack", "watch"]


def _hiding(mask: Tensor, d: Description, dtype: torch.dtype) -> Tensor:
    """A mask in which True, or a low number, hides."""
    coded = encode(mask, None, d, dtype)
    assert coded is not None
    return ~coded if coded.dtype == torch.bool else coded


class MultiHead(nn.Module):
    """``nn.MultiheadAttention`` as one layer's attention."""

    def __init__(self, d: Description, plan: Plan, layer: int, cross: bool = False) -> None:
        super().__init__()
        self.d, self.cross = d, cross
        extra = {"add_bias_kv": d.keys == "bias_kv" and not cross, "add_zero_attn": d.keys == "zero_attn" and not cross}
        self.mha = nn.MultiheadAttention(d.width, d.heads, batch_first=d.batch_first, **extra)

    def forward(self, x: Tensor, other: Tensor | None = None, mask: Any = None, past: Any = None) -> Tensor:
        """``mask`` is visible pairs and real tokens; the memory's real tokens where it is one."""
        d = self.d
        other = x if other is None else other
        options: dict[str, Any] = {"need_weights": d.need_weights}
        if self.cross:
            options["key_padding_mask"] = None if mask is None else ~mask
        elif mask is not None:
            options |= self._masks(*mask, x.dtype)
        if not d.batch_first:
            same = other is x
            x = x.transpose(0, 1)
            other = x if same else other.transpose(0, 1)
        result = self.mha(x, other, other, **options)[0]
        return result if d.batch_first else result.transpose(0, 1)

    def _masks(self, visible: Tensor, keep: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
        d = self.d
        masks = {}
        if keep is not None and not d.padding_mask:
            visible, keep = visible & keep[:, None, None], None
        if keep is not None:
            coded = encode(keep, None, d, dtype) if d.shape != "qk" else encode(keep[None, None], None, d, dtype)
            assert coded is not None
            masks["key_padding_mask"] = (~coded if coded.dtype == torch.bool else coded).reshape(keep.shape)
        if d.values != "none" and (d.structure != "full" or keep is None):
            if visible.shape[0] > 1 or d.shape == "bhqk":
                coded = _hiding(visible.expand(d.batch, d.heads, -1, -1), d, dtype)
                masks["attn_mask"] = coded.expand(d.batch, d.heads, -1, -1).flatten(0, 1)
            else:
                masks["attn_mask"] = _hiding(visible, d, dtype)
        return masks


class TorchStack(nn.Module):
    """``nn.TransformerEncoder``, or ``nn.TransformerDecoder`` with a memory."""

    def __init__(self, d: Description) -> None:
        super().__init__()
        self.d = d
        options = {"batch_first": d.batch_first, "norm_first": d.norm_first, "dim_feedforward": 2 * d.width}
        if d.how == "encoder":
            one = nn.TransformerEncoderLayer(d.width, d.heads, **options)
            self.stack: nn.Module = nn.TransformerEncoder(one, d.layers, enable_nested_tensor=d.batch_first and not d.norm_first)
        else:
            self.stack = nn.TransformerDecoder(nn.TransformerDecoderLayer(d.width, d.heads, **options), d.layers)
        for parameter in self.stack.parameters():  # the layers are copies of one
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, plan: Plan, keep: Tensor | None, memory: Tensor | None) -> Tensor:
        d = self.d
        mask = None if d.structure == "full" else _hiding(plan.structure, d, x.dtype)
        padding = None
        if keep is not None:
            padding = ~keep if mask is None or mask.dtype == torch.bool else torch.zeros_like(keep, dtype=mask.dtype).masked_fill(~keep, float("-inf"))
        x, memory = (t if d.batch_first or t is None else t.transpose(0, 1) for t in (x, memory))
        if d.how == "encoder":
            x = self.stack(x, mask=mask, src_key_padding_mask=padding)
        else:
            real = ~plan.memory_real if d.memory_lengths else None
            if d.source == "memory_position":
                x = self.stack(x, memory, mask, None, padding, real)
            else:
                x = self.stack(x, memory=memory, tgt_mask=mask, tgt_key_padding_mask=padding, memory_key_padding_mask=real)
        return x if d.batch_first else x.transpose(0, 1)


@contextmanager
def watch(model: nn.Module, d: Description) -> Iterator[None]:
    """Write down what every ``nn.MultiheadAttention`` computes, without the fused path that hides it."""
    if d.how not in MODULES:
        yield
        return
    handles = [m.register_forward_pre_hook(_hook, with_kwargs=True) for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()


def _hook(mha: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    query, key = args[0], args[1]
    if not mha.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    weights, biases = mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3)
    q, k = (F.linear(x, w, b) for x, w, b in zip((query, key), weights, biases, strict=False))
    if mha.bias_k is not None:
        k = torch.cat([k, mha.bias_k.expand(len(k), 1, -1)], 1)
    if mha.add_zero_attn:
        k = F.pad(k, (0, 0, 0, 1))
    q, k = (x.unflatten(-1, (mha.num_heads, -1)).transpose(1, 2) for x in (q, k))
    # whether it crosses, its path tells: see `models.run`
    note(Seen(mha, q, k, q.shape[-1] ** -0.5, False))
