"""Moments of a role's vectors: where they lie, how long queries and keys are, and how they point."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_geo import kernels
from lightning_geo.functional._tensors import as_float, check_mask
from lightning_geo.functional.cone import sum_of_directions
from lightning_geo.kernels import BACKENDS, MOMENTS, Backend, HeadMoments
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.arguments import check_one_of, check_statistics
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.shapes import Bool, Float, Num

__all__ = ["head_moments", "qk_cosine"]


def head_moments(
    x: Float[Tensor, "batch heads tokens dim"],
    mask: Bool[Tensor, "#batch #tokens"] | None = None,
    *,
    backend: Backend = "auto",
    statistics: Iterable[str] | None = None,
) -> HeadMoments:
    r"""First and second moments of one role's vectors per head, and their cone, in one read.

    .. math:: \bar x = \frac{1}{n} \sum_i x_i, \quad S = \sum_i (x_i - \bar x)(x_i - \bar x)^\top

    over the real tokens of all sequences. S / n is the covariance whose eigenvalues
    :func:`participation_ratio` and its neighbours take.

    Args:
        x: ``[B, H, N, D]``, any floating point type, any strides.
        mask: Bool ``[B, N]`` (sizes equal or 1), True = real token. The rest has no influence.
        backend: As in :func:`attention_statistics`.
        statistics: Which of ``norm``, ``directions`` and ``scatter`` (with ``count`` and ``mean``) to
            compute; None for all of them.

    Returns:
        :class:`~lightning_geo.kernels.HeadMoments`, without a gradient; what was not requested is None.

    Raises:
        TypeError: If ``x`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit, or a statistic is unknown.

    Source: Principal component analysis; The geometry of BERT, arXiv 2502.12033 (cone).

    Example:
        >>> moments = head_moments(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]]))
        >>> moments.mean, moments.scatter
        (tensor([[0., 2.]]), tensor([[[0., 0.],
                 [0., 2.]]]))
    """
    check_one_of("backend", backend, BACKENDS)
    requested = check_statistics(statistics, MOMENTS)
    as_float(x[:0] if isinstance(x, Tensor) and x.ndim > 3 else x, "x", "h n d")
    if x.ndim != 4:
        raise ArgumentError(
            f"Expected `x` to have shape [batch, head, token, head_dim] but got {list(x.shape)}."
        )
    if mask is not None:
        shape = torch.Size([x.shape[0], x.shape[2]])
        check_mask(mask, shape)
        mask = mask.expand(shape)
    return kernels.head_moments(x, mask, requested, backend)


def qk_cosine(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch key_heads keys dim"],
    query_mask: Bool[Tensor, "*#batch #queries"] | None = None,
    key_mask: Bool[Tensor, "*#batch #keys"] | None = None,
) -> Float[Tensor, "*batch heads"]:
    r"""Mean cosine over all pairs of a valid query and a valid key, whether one may see the other or not.

    .. math:: \frac{1}{n_q n_k} \sum_{ij} \cos(q_i, k_j)
              = \Big\langle \frac{1}{n_q} \sum_i \hat q_i, \frac{1}{n_k} \sum_j \hat k_j \Big\rangle

    A zero vector counts as cosine 0.

    Args:
        query: ``[..., H, Nq, D]``, any floating point type.
        key: ``[..., Hk, Nk, D]``, H a multiple of Hk: each key head serves H/Hk query heads in a row.
        query_mask: Boolean ``[..., Nq]`` (no head axis), True = real token. The rest has no influence.
        key_mask: Boolean ``[..., Nk]``, the same for keys.

    Returns:
        ``[..., H]`` in [-1, 1]; NaN where no query or no key is valid.

    Raises:
        TypeError: If ``query`` or ``key`` is not floating point or a mask not boolean.
        ValueError: If shapes do not fit.

    Source: Henry et al. 2020, Query-key normalization.

    Example:
        >>> query = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]])
        >>> qk_cosine(query, torch.tensor([[[5.0, 0.0], [0.0, 1.0]]]))
        tensor([0.5000])
    """
    fits = query.ndim == key.ndim >= 3 and query.shape[:-3] == key.shape[:-3]
    if not fits or query.shape[-1] != key.shape[-1]:
        raise ArgumentError(
            f"Expected `query` [..., H, Nq, D] and `key` [..., Hk, Nk, D] to agree in D and in what is "
            f"left of the heads but got {list(query.shape)} and {list(key.shape)}."
        )
    (q, queries, _), (k, keys, _) = (
        sum_of_directions(x, None if mask is None else mask[..., None, :], name)
        for x, mask, name in ((query, query_mask, "query"), (key, key_mask, "key"))
    )
    return _cosine(q, queries, k, keys)


@computes("qk_cosine", reads=("query.directions", "query.tokens", "key.directions", "key.tokens"))
def _cosine(
    q: Float[Tensor, "*batch heads dim"],
    queries: Num[Tensor, "*batch heads"],
    k: Float[Tensor, "*batch key_heads dim"],
    keys: Num[Tensor, "*batch key_heads"],
) -> Float[Tensor, "*batch heads"]:
    """Mean cosine from sums of directions ``[..., H, D]`` and the numbers of tokens behind them."""
    cosines = (q * _for_query_heads(k, q.shape[-2], -2)).sum(-1)
    return (cosines / (queries * _for_query_heads(keys, q.shape[-2], -1))).clamp(-1, 1)


def _for_query_heads(x: Num[Tensor, " ..."], heads: int, dim: int) -> Num[Tensor, " ..."]:
    """Repeat the values of each key head for the query heads that it serves."""
    if heads % x.shape[dim]:
        raise ArgumentError(
            f"Expected the number of query heads to be a multiple of the number of key heads but got "
            f"{heads} and {x.shape[dim]}."
        )
    return x.repeat_interleave(heads // x.shape[dim], dim)


@computes("query_norm", reads=("query.length",))
@computes("key_norm", reads=("key.length",))
def _length(length: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return length
