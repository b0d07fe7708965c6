"""Attention by torch's own modules: what they are given is seen by hooks, in a run of the harness's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.description import MODULES, Description
from harness.log import Seen, note
from harness.visibility import Plan, encode

__all__ = ["MultiHead", "TorchStack", "watch"]


def _hiding(mask: Tensor, d: Description, dtype: torch.dtype) -> Tensor:
    """A mask in which True, or a low number, hides."""
    coded = encode(mask, None, replace(d, shape="11qk"), dtype)
    assert coded is not None
    return ~coded if coded.dtype == torch.bool else coded


class MultiHead(nn.Module):
    """``nn.MultiheadAttention`` as one layer's attention."""

    def __init__(self, d: Description, plan: Plan, layer: int, cross: bool = False) -> None:
        super().__init__()
        self.d, self.cross = d, cross
        extra = {
            "add_bias_kv": d.keys == "bias_kv" and not cross,
            "add_zero_attn": d.keys == "zero_attn" and not cross,
        }
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
        """Visible pairs as ``attn_mask``, real tokens there too or as ``key_padding_mask``."""
        d = self.d
        masks = {}
        if d.values == "none":
            return masks
        if keep is not None and d.padding_mask:
            masks["key_padding_mask"] = _hiding(keep, d, dtype)
        elif keep is not None:
            visible = visible & keep[:, None, None]
        if d.structure != "full" or (keep is not None and not d.padding_mask):
            hiding = _hiding(visible, d, dtype)
            several = len(hiding) > 1 or d.shape == "bhqk"
            whole = hiding.expand(d.batch, d.heads, d.length, d.length)
            masks["attn_mask"] = whole.flatten(0, 1) if several else hiding[0, 0]
        return masks


class TorchStack(nn.Module):
    """``nn.TransformerEncoder``, or ``nn.TransformerDecoder`` with a memory."""

    def __init__(self, d: Description) -> None:
        super().__init__()
        self.d = d
        options = {"batch_first": d.batch_first, "norm_first": d.norm_first, "dim_feedforward": 2 * d.width}
        if d.how == "encoder":
            one = nn.TransformerEncoderLayer(d.width, d.heads, **options)
            self.stack: nn.Module = nn.TransformerEncoder(
                one, d.layers, enable_nested_tensor=d.batch_first and not d.norm_first
            )
        else:
            self.stack = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(d.width, d.heads, **options), d.layers
            )
        for parameter in self.stack.parameters():  # the layers are copies of one
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, plan: Plan, keep: Tensor | None, memory: Tensor | None) -> Tensor:
        d = self.d
        mask = None if d.structure == "full" else _hiding(plan.structure, d, x.dtype)[0, 0]
        padding = None
        if keep is not None:
            padding = (
                ~keep
                if mask is None or mask.dtype == torch.bool
                else torch.zeros_like(keep, dtype=mask.dtype).masked_fill(~keep, float("-inf"))
            )
        x, memory = (t if d.batch_first or t is None else t.transpose(0, 1) for t in (x, memory))
        if d.how == "encoder":
            x = self.stack(x, mask=mask, src_key_padding_mask=padding)
        else:
            real = ~plan.memory_real if d.memory_lengths else None
            if d.source == "memory_position":
                x = self.stack(x, memory, mask, None, padding, real)
            else:
                x = self.stack(
                    x,
                    memory=memory,
                    tgt_mask=mask,
                    tgt_key_padding_mask=padding,
                    memory_key_padding_mask=real,
                )
        return x if d.batch_first else x.transpose(0, 1)


@contextmanager
def watch(model: nn.Module, d: Description) -> Iterator[None]:
    """Write down what every ``nn.MultiheadAttention`` computes, without the fused path that hides it."""
    if d.how not in MODULES:
        yield
        return
    attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    handles = [m.register_forward_hook(_hook, with_kwargs=True) for m in attentions]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()


def _hook(mha: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    given, output = list(args[:3]), result[0]
    if not mha.batch_first:
        given, output = [x.transpose(0, 1) for x in given], output.transpose(0, 1)
    weights, biases = mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True))
    if mha.bias_k is not None:
        k, v = (torch.cat([x, b.expand(len(x), 1, -1)], 1) for x, b in ((k, mha.bias_k), (v, mha.bias_v)))
    if mha.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    q, k, v = (x.unflatten(-1, (mha.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    # whether it crosses, its path tells: see `models.run`
    note(
        Seen(
            mha,
            q,
            k,
            q.shape[-1] ** -0.5,
            False,
            value=v.double(),
            output=output.double(),
            project=mha.out_proj,
        )
    )
