"""Statistics of attention per query without the attention matrix: argument checks around the kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.functional._tensors import check_wanted
from lightning_geo.kernels import (
    BACKENDS,
    STATISTICS,
    AttentionProblem,
    AttentionStatistics,
    Backend,
    BlockRule,
    attention,
)
from lightning_geo.utils.arguments import check_one_of

__all__ = ["attention_statistics"]

Mask: TypeAlias = Tensor | BlockMask


def attention_statistics(
    query: Tensor,
    key: Tensor,
    *,
    mask: Mask | Sequence[Mask] | None = None,
    is_causal: bool = False,
    causal_alignment: Literal["top_left", "bottom_right"] = "top_left",
    query_mask: Tensor | None = None,
    window: int | tuple[int, int] | None = None,
    sinks: Tensor | None = None,
    special: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: Backend = "auto",
    statistics: Iterable[str] | None = None,
    queries: Tensor | None = None,
) -> AttentionStatistics:
    r"""Entropy, concentration and pattern of every query's attention, and what each key receives.

    .. math:: p_{ij} = \operatorname{softmax}_j s_{ij}, \quad
              s_{ij} = \text{scale} \cdot \langle q_i, k_j \rangle + \text{mask}_{ij}

    over the visible keys j, before dropout. Nothing of size Nq x Nk is held: tiles of a few MB are.
    Products and sums are taken in float32, float64 inputs included, also under autocast.

    Args:
        query: ``[B, H, Nq, D]``, any floating point type, any strides; after RoPE and QK-norm.
        key: ``[B, Hk, Nk, D]``, H a multiple of Hk: query head h reads key head h // (H / Hk).
        mask: What hides or biases scores; several in a list or tuple all apply. Bool (True = attend) or
            additive float, broadcastable to ``[B, H, Nq, Nk]``, entries at or below -9000
            (``kernels.HIDDEN_BELOW``) hiding the key; or a ``BlockMask`` of shape
            ``[B or 1, H or 1, Nq, Nk]``, which is evaluated tile by tile.
        is_causal: Hide the keys after a query's position.
        causal_alignment: Key position of query row i, for causality, window, and the metrics on
            positions: i with ``"top_left"`` (torch's SDPA), i + Nk - Nq with ``"bottom_right"``
            (FlashAttention, decoding with a cache), causal or not.
        query_mask: Bool ``[B, Nq]``, True = real token. The other rows are not live: they have no
            statistics and give nothing to ``received``. Attention masks do not tell which these are.
        window: ``(left, right)`` lets position i see i - left <= j <= i + right, -1 meaning no limit, as
            in FlashAttention. ``w`` is ``(w - 1, -1)``: i - w < j, as ``sliding_window`` in transformers,
            where ``is_causal`` or the mask limits the right side.
        sinks: Floating point ``[H]``, the logit of a key-less column per head (gpt-oss). It takes part in
            ``sink_mass`` alone; everything else is renormalised over real keys.
        special: Bool ``[B, Nk]``, True = special token among the keys, for ``special_mass``.
        scale: Factor of the dot products; 1/sqrt(D) by default.
        softcap: Scores become ``softcap * tanh(score / softcap)`` before masks; None or 0 for none.
        backend: ``"auto"`` uses the fused kernel ``"triton"`` on CUDA devices and ``"chunked"``, tiles in
            torch, elsewhere; ``"reference"`` is the float64 oracle of the tests and materialises the
            matrices. A call that a backend cannot take falls back to ``"chunked"``; the logger
            ``lightning_geo.kernels`` gives the reason at debug level.
        statistics: Names of the fields to compute, which saves the others' cost; None for all of them.
        queries: int64 ``[B, R]``, the query rows to measure, in any order; None for all. Planes are
            then ``[B, H, R]``, exact for these rows, and ``received`` is from them alone.

    Returns:
        :class:`~lightning_geo.kernels.AttentionStatistics`: float32 planes ``[B, H, Nq]``, NaN in rows that
        are not ``live``; ``received`` ``[B, H, Nk]``. NaN or infinite inputs give NaN in the rows that
        see them. Fields not asked for are None.

    Raises:
        TypeError: If an argument is no tensor, or none of the expected type.
        ValueError: If shapes or devices do not fit, an option has no meaning, or rows do not exist.

    Source: Shannon 1948; Clark et al. 2019, What Does BERT Look At?; softmax without the matrix as in
    Milakov & Gimelshein 2018 and Dao et al. 2022, FlashAttention.

    Example:
        >>> query, key = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8)
        >>> statistics = attention_statistics(query, key, is_causal=True)
        >>> statistics.entropy.exp()
        tensor([[[1., 2., 3., 4.]]])
        >>> statistics.received
        tensor([[[2.0833, 1.0833, 0.5833, 0.2500]]])
    """
    check_one_of("backend", backend, BACKENDS)
    problem = attention_problem(
        query,
        key,
        mask=mask,
        is_causal=is_causal,
        causal_alignment=causal_alignment,
        query_mask=query_mask,
        window=window,
        sinks=sinks,
        special=special,
        scale=scale,
        softcap=softcap,
        statistics=statistics,
        queries=queries,
    )
    return attention(problem, backend)


def attention_problem(
    query: Tensor,
    key: Tensor,
    *,
    mask: Mask | Sequence[Mask] | None,
    is_causal: bool,
    causal_alignment: str,
    query_mask: Tensor | None,
    window: int | tuple[int, int] | None,
    sinks: Tensor | None,
    special: Tensor | None,
    scale: float | None,
    softcap: float | None,
    statistics: Iterable[str] | None,
    queries: Tensor | None,
) -> AttentionProblem:
    """Check the arguments of :func:`attention_statistics` and bring them into the form of the kernels.

    Raises:
        TypeError: If an argument is no tensor, or none of the expected type.
        ValueError: If shapes or devices do not fit, or an option has no meaning.
    """
    _check_query_key(query, key)
    batch, heads, rows, width = query.shape
    keys = key.shape[2]
    if causal_alignment not in ("top_left", "bottom_right"):
        raise ValueError(
            "Expected `causal_alignment` to be 'top_left' (torch) or 'bottom_right' (FlashAttention) "
            f"but got {causal_alignment!r}."
        )
    left, right = _window(window)
    _check_flags("query_mask", query_mask, (batch, rows), "a real token", query.device)
    _check_flags("special", special, (batch, keys), "a special token", query.device)
    if sinks is not None:
        _check_tensor("sinks", sinks, query.device)
        if sinks.shape != (heads,):
            raise ValueError(
                f"Expected `sinks` to have shape [{heads}], one logit per query head, "
                f"but got {list(sinks.shape)}."
            )
    masks = tuple(mask) if isinstance(mask, (list, tuple)) else () if mask is None else (mask,)
    return AttentionProblem(
        query=query,
        key=key,
        scale=_finite("scale", width**-0.5 if scale is None else scale),
        softcap=_softcap(softcap),
        masks=tuple(_mask(m, (batch, heads, rows, keys), query.device) for m in masks),
        offset=keys - rows if causal_alignment == "bottom_right" else 0,
        left=left,
        right=0 if is_causal else right,
        query_mask=query_mask,
        sinks=sinks,
        special=special,
        rows=None if queries is None else _rows(queries, (batch, rows), query.device),
        wanted=check_wanted(statistics, STATISTICS),
    )


def _rows(rows: Tensor, shape: tuple[int, int], device: torch.device) -> Tensor:
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
        kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"Expected `queries` to be an int64 tensor of row indices but got {kind}.")
    _check_device("queries", rows, device)
    if rows.dim() != 2 or rows.shape[0] != shape[0]:
        raise ValueError(
            f"Expected `queries` to have shape [{shape[0]}, R], rows of each sequence, "
            f"but got {list(rows.shape)}."
        )
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < shape[1]:
        raise ValueError(
            f"Expected `queries` to hold row indices from 0 to {shape[1] - 1} "
            f"but got {int(rows.min())} to {int(rows.max())}."
        )
    return rows


def _check_tensor(name: str, value: object, device: torch.device | None = None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected `{name}` to be a torch.Tensor but got {type(value).__name__}.")
    if not value.is_floating_point():
        raise TypeError(f"Expected `{name}` to be a floating point tensor but got {value.dtype}.")
    _check_device(name, value, device)


def _check_device(name: str, value: Tensor, device: torch.device | None) -> None:
    if device is not None and value.device != device:
        raise ValueError(
            f"Expected `{name}` to be on the device of `query`, {device}, but got {value.device}. "
            "Move it there."
        )


def _check_query_key(query: Tensor, key: Tensor) -> None:
    for name, value in (("query", query), ("key", key)):
        _check_tensor(name, value)
        if value.dim() != 4 or value.shape[3] == 0:
            raise ValueError(
                f"Expected `{name}` to have shape [batch, head, token, head_dim] but got {list(value.shape)}."
            )
    _check_device("key", key, query.device)
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            "Expected `query` and `key` to agree in batch size and head_dim, "
            f"[B, H, Nq, D] and [B, Hk, Nk, D], but got {list(query.shape)} and {list(key.shape)}."
        )
    if key.shape[2] == 0:
        raise ValueError(f"Expected `key` to hold at least one token but got {list(key.shape)}.")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            "Expected the heads of `query` to be a multiple of the heads of `key` "
            f"but got {query.shape[1]} and {key.shape[1]}."
        )


def _check_flags(
    name: str, value: Tensor | None, shape: tuple[int, int], meaning: str, device: torch.device
) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"Expected `{name}` to be a boolean tensor, True for {meaning}, but got {kind}. "
            "Convert a 0/1 tensor with `.bool()`."
        )
    _check_device(name, value, device)
    if value.shape != shape:
        raise ValueError(f"Expected `{name}` to have shape {list(shape)} but got {list(value.shape)}.")


def _mask(mask: Mask, shape: tuple[int, int, int, int], device: torch.device) -> Tensor | BlockRule:
    """Check one mask and bring it into the problem's form."""
    if isinstance(mask, BlockMask):
        _check_device("mask", mask.kv_num_blocks, device)
        if mask.shape[2:] != shape[2:] or any(
            m not in (1, n) for m, n in zip(mask.shape[:2], shape[:2], strict=True)
        ):
            raise ValueError(
                f"Expected `mask`, a BlockMask, to be made for {list(shape)}, or 1 as batch or head, "
                f"but got {list(mask.shape)}."
            )
        return BlockRule.of(mask)
    if not isinstance(mask, Tensor):
        raise TypeError(f"Expected `mask` to be a torch.Tensor or a BlockMask but got {type(mask).__name__}.")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"Expected `mask` to be boolean, True = attend, or additive floating point but got {mask.dtype}. "
            "Convert a 0/1 mask with `.bool()`."
        )
    _check_device("mask", mask, device)
    if mask.dim() > 4 or any(
        m not in (1, n) for m, n in zip(reversed(mask.shape), reversed(shape), strict=False)
    ):
        raise ValueError(
            f"Expected `mask` to be broadcastable to [B, H, Nq, Nk] = {list(shape)} "
            f"but got {list(mask.shape)}. A padding mask [B, Nk] goes in as `mask[:, None, None, :]`."
        )
    mask = mask[(None,) * (4 - mask.dim())]
    # an expanded axis is read once, not once for each row
    for axis, (size, stride) in enumerate(zip(mask.shape, mask.stride(), strict=True)):
        if stride == 0 and size > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask


def _window(window: int | tuple[int, int] | None) -> tuple[int | None, int | None]:
    """How many keys before and after a position are visible; None for all."""
    if window is None:
        return None, None
    if isinstance(window, int) and not isinstance(window, bool) and window > 0:
        return window - 1, None
    if (
        isinstance(window, (tuple, list))
        and len(window) == 2
        and all(isinstance(side, int) and side >= -1 for side in window)
    ):
        left, right = (None if side == -1 else side for side in window)
        return left, right
    raise ValueError(
        "Expected `window` to be a positive int (keys up to and including the query's own) or a pair "
        f"(left, right) of ints >= -1, -1 for no limit, but got {window!r}."
    )


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"Expected `{name}` to be finite but got {value!r}.")
    return float(value)


def _softcap(softcap: float | None) -> float | None:
    if softcap is None or softcap == 0:
        return None
    if softcap < 0:
        raise ValueError(f"Expected `softcap` to be positive, or None for none, but got {softcap!r}.")
    return _finite("softcap", softcap)
