"""Statistics of attention per query without the attention matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor

from lightning_geo.kernels import (
    BACKENDS,
    STATISTICS,
    AttentionProblem,
    AttentionStatistics,
    Backend,
    attention,
)
from lightning_geo.kernels.checks import Mask, check_rows
from lightning_geo.utils.arguments import check_one_of, check_statistics
from lightning_geo.utils.shapes import Bool, Float, Int64

__all__ = ["attention_statistics"]


def attention_statistics(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch key_heads keys dim"],
    *,
    mask: Mask | Sequence[Mask] | None = None,
    is_causal: bool = False,
    causal_alignment: Literal["top_left", "bottom_right"] = "top_left",
    query_mask: Bool[Tensor, "batch queries"] | None = None,
    window: int | tuple[int, int] | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    special: Bool[Tensor, "batch keys"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: Backend = "auto",
    statistics: Iterable[str] | None = None,
    queries: Int64[Tensor, "batch measured"] | None = None,
) -> AttentionStatistics:
    r"""Entropy, concentration and pattern of every query's attention, and the mass that each key receives.

    .. math:: p_{ij} = \operatorname{softmax}_j s_{ij}, \quad
              s_{ij} = \text{scale} \cdot \langle q_i, k_j \rangle + \text{mask}_{ij}

    over the visible keys j, before dropout. Nothing of size Nq x Nk is held: tiles of a few MB are.
    Products and sums are taken in float32, float64 inputs included, also under autocast.

    Args:
        query: ``[B, H, Nq, D]``, any floating point type, any strides; after RoPE and QK-norm.
        key: ``[B, Hk, Nk, D]``, H a multiple of Hk: query head h reads key head h // (H / Hk).
        mask: One mask, or several in a list or tuple that all apply. Bool (True = attend) or
            additive float, broadcastable to ``[B, H, Nq, Nk]``, entries at or below -9000
            (``kernels.HIDDEN_BELOW``) hiding the key; or a ``BlockMask`` of shape
            ``[B or 1, H or 1, Nq, Nk]``, which is evaluated tile by tile.
        is_causal: Hide the keys after a query's position.
        causal_alignment: Key position of query row i, for causality, window, and the metrics on
            positions: i with ``"top_left"`` (torch's SDPA), i + Nk - Nq with ``"bottom_right"``
            (FlashAttention, decoding with a cache), causal or not.
        query_mask: Bool ``[B, Nq]``, True = real token. The other rows are not live: they have no
            statistics and add nothing to ``received``. Attention masks do not mark rows that are padding.
        window: ``(left, right)`` lets position i see i - left <= j <= i + right, -1 meaning no limit, as
            in FlashAttention. ``w`` is ``(w - 1, -1)``: i - w < j, as ``sliding_window`` in transformers,
            where ``is_causal`` or the mask limits the right side.
        sinks: Floating point ``[H]``, the logit of a key-less column per head (gpt-oss). It takes part in
            ``learned_sink_mass`` alone; everything else is renormalised over real keys.
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
        see them. Fields that were not requested are None.

    Raises:
        TypeError: If an argument is no tensor, or none of the expected type.
        ValueError: If shapes or devices do not fit, an option has no meaning, or rows do not exist.

    Source: Shannon 1948; Clark et al. 2019, What Does BERT Look At?; softmax without the matrix as in
    Milakov & Gimelshein 2018 and Dao et al. 2022, FlashAttention.

    Example:
        >>> import torch
        >>> query, key = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8)
        >>> statistics = attention_statistics(query, key, is_causal=True)
        >>> statistics.entropy.exp()
        tensor([[[1., 2., 3., 4.]]])
        >>> statistics.received
        tensor([[[2.0833, 1.0833, 0.5833, 0.2500]]])
    """
    check_one_of("backend", backend, BACKENDS)
    check_one_of("causal_alignment", causal_alignment, ("top_left", "bottom_right"))
    problem = AttentionProblem.of(
        query,
        key,
        scale=scale,
        softcap=softcap,
        masks=mask,
        offset=None if causal_alignment == "bottom_right" else 0,
        window=window,
        is_causal=is_causal,
        query_mask=query_mask,
        sinks=sinks,
        special=special,
        rows=queries,
        requested=check_statistics(statistics, STATISTICS),
    )
    if queries is not None:
        check_rows(queries, (query.shape[0], query.shape[2]), query.device)
    return attention(problem, backend)
