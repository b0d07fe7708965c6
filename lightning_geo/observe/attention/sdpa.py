"""``F.scaled_dot_product_attention`` and ``nn.MultiheadAttention``, seen as torch functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.axes import Axes, UnknownAxesError

__all__ = ["MULTI_HEAD", "multi_head_call", "multi_head_inputs", "sdpa_call", "sdpa_inputs"]

#: Arguments of ``F.multi_head_attention_forward`` by name.
MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def sdpa_call(
    axes: Callable[[Tensor, Tensor], Axes],
    output: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> AttentionCall:  # fmt: skip
    """Translate one call of ``scaled_dot_product_attention``.

    Args:
        axes: Finds the axis of heads from queries and keys. The other arguments are the function's result
            and its own arguments.

    Raises:
        UnknownAxesError: If the tensors are nested, or the axis of heads is unknown.
    """
    if query.is_nested:
        raise UnknownAxesError(
            "it attends with nested tensors. Pad the sequences, or pack them with position ids that restart"
        )
    layout = axes(query, key)
    mask = None if attn_mask is None else _plain_mask(attn_mask)
    lengths = query.shape[-2], key.shape[-2]
    # torch aligns causality at the first key, whatever the offset: write the mask out.
    if is_causal and lengths[0] != lengths[1]:
        mask, is_causal = torch.ones(lengths, dtype=torch.bool, device=query.device).tril(), False
    q, k, v = layout(query), layout.grouped(key, query), layout.grouped(value, query)
    if any(x.shape[0] != q.shape[0] or q.shape[1] % x.shape[1] for x in (k, v)):
        raise UnknownAxesError(
            f"queries {list(query.shape)} and keys {list(key.shape)} have no batch and heads in common. "
            "Call attention with [batch, heads, tokens, features]"
        )
    return AttentionCall(
        query=q,
        key=k,
        value=v,
        output=layout(output),
        masks=() if mask is None else (layout.mask(mask, query.shape[:-2]),),
        is_causal=is_causal,
        scale=scale,
    )


def sdpa_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return queries and keys from the arguments of ``scaled_dot_product_attention``."""
    query, key = [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)][:2]
    return query, key


def _plain_mask(mask: Tensor) -> Tensor:
    """Return a mask with its entries: objects of ``torch.nn.attention.bias`` are tensors without entries."""
    if not isinstance(mask, CausalBias):
        return mask
    shape = mask.seq_len_q, mask.seq_len_kv
    below = shape[1] - shape[0] if mask.variant == CausalVariant.LOWER_RIGHT else 0
    return torch.ones(shape, dtype=torch.bool, device=mask.device).tril(below)


def multi_head_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the queries' and keys' hidden states from ``F.multi_head_attention_forward``'s arguments."""
    arguments = MULTI_HEAD.bind(*args, **kwargs).arguments
    return arguments["query"], arguments["key"]


def multi_head_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[AttentionCall, bool]:
    """Translate one call of ``F.multi_head_attention_forward`` from its arguments.

    The function hides its inside: to observe it, the function mode would have to enter itself and recurse
    endlessly. Query, key and value are projected again instead, and the heads' outputs computed again without
    dropout, on samples only. That costs about half as much as the call itself.

    Returns:
        The call, and whether keys without a token were appended to the others.
    """
    bound = MULTI_HEAD.bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    query, key, value = a["query"], a["key"], a["value"]
    if query.dim() == 2:  # one sequence without a batch axis
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
    _, batch, width = query.shape
    if a["use_separate_proj_weight"]:
        weights = [a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]]
    else:
        weights = list(a["in_proj_weight"].split(width))
    bias = a["in_proj_bias"]
    biases = [None] * 3 if bias is None else list(bias.split(width))
    heads = a["num_heads"]
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    if a["static_k"] is not None:
        k = a["static_k"].unflatten(0, (batch, heads))
    if a["static_v"] is not None:
        v = a["static_v"].unflatten(0, (batch, heads))
    masks = _multi_head_masks(a["attn_mask"], a["key_padding_mask"], batch, heads)
    extra = int(a["bias_k"] is not None) + int(a["add_zero_attn"])
    if a["bias_k"] is not None:
        learned = [x.expand(1, batch, width).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
                   for x in (a["bias_k"], a["bias_v"])]  # fmt: skip
        k, v = torch.cat([k, learned[0]], dim=2), torch.cat([v, learned[1]], dim=2)
    if a["add_zero_attn"]:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    masks = tuple(F.pad(m, (0, extra), value=m.dtype == torch.bool) if extra else m for m in masks)
    additive = [torch.zeros((), dtype=q.dtype, device=q.device).where(m, -torch.inf) if m.dtype == torch.bool
                else m for m in masks]  # fmt: skip
    bias = functools.reduce(torch.add, additive) if additive else None
    output = F.scaled_dot_product_attention(q, k, v, bias)
    parameters = dict(zip(("query", "key", "value", "output"), (*weights, a["out_proj_weight"]), strict=True))
    tokens = (x.transpose(0, 1) for x in (query, key, value))
    inputs = dict(zip(("query", "key", "value"), tokens, strict=True))
    call = AttentionCall(
        q, k, v, output, masks=masks, parameters=parameters, inputs=None if extra else inputs
    )
    return call, bool(extra)


def _multi_head_masks(
    attention: Tensor | None, padding: Tensor | None, batch: int, heads: int
) -> tuple[Tensor, ...]:
    """Invert bool masks: in ``nn.MultiheadAttention`` True hides, in an attention call False."""
    masks = []
    if attention is not None:
        shape = (batch, heads) if attention.dim() == 3 and attention.shape[0] != 1 else None
        mask = attention.unflatten(0, shape) if shape else attention.expand(1, 1, *attention.shape[-2:])
        masks.append(~mask if mask.dtype == torch.bool else mask)
    if padding is not None:
        mask = padding.reshape(batch, 1, 1, -1)
        masks.append(~mask if mask.dtype == torch.bool else mask)
    return tuple(masks)
