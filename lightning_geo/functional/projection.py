"""How strongly tokens lie in the subspace that a head reads, and whether values read the same as queries.

A head's *read subspace* is the row space of its weight ``[D, d]``: the directions of the stream that change
its queries, keys or values at all. There are two ways to ask how much of a token lies in it. Weighted by the
weight itself, ‖W x‖²/‖x‖² repeats ``query_norm``, up to the bias and the token's length, and grows with the
weight. Unweighted, ‖P x‖²/‖x‖² with the orthogonal projection P, is a share between
0 and 1 that no scale of the weight changes, with D/d for a token in a random direction: that one is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_geo.functional._decompositions import by_lapack
from lightning_geo.functional._tensors import exact_dtype, masked_mean
from lightning_geo.functional.head_weights import HeadWeights, whitener
from lightning_geo.functional.observed_call import ObservedScores
from lightning_geo.kernels.precision import exactly
from lightning_geo.kernels.workspace import scratch
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.shapes import Bool, Float

__all__ = ["HeadReads", "projection_strength"]


@dataclass(frozen=True)
class HeadReads:
    """Input, weight and output of one role's projection.

    Args:
        x: ``[B, N, d]``, the projection's input.
        weight: ``[h, D, d]``, its rows per head.
        y: ``[B, N, h, D]``, W x plus the bias; ``None`` to compute it.
        bias: ``[h, D]``, the bias contained in ``y``; ``None`` for none.
        mask: Bool ``[B, N]``, True = real token; None if all are.
        heads: H, a multiple of h: where query heads share a key head, its numbers are repeated.
    """

    x: Float[Tensor, "batch tokens width"]
    weight: Float[Tensor, "h dim width"]
    y: Float[Tensor, "batch tokens h dim"] | None = None
    bias: Float[Tensor, "h dim"] | None = None
    mask: Bool[Tensor, "batch tokens"] | None = None
    heads: int | None = None


@computes("projection_strength", reads=("inputs",))
def projection_strength(reads: HeadReads) -> Float[Tensor, "batch heads"]:
    r"""Share of tokens that lies in a head's read subspace.

    .. math:: \frac{1}{n} \sum_i \frac{\|P x_i\|^2}{\|x_i\|^2}

    Args:
        reads: One role's.

    Returns:
        ``[B, H]`` in [0, 1], D/d for tokens in random directions; NaN for sequences without real tokens.

    Source: The geometry of BERT, arXiv 2502.12033 (subspace selection).

    Example:
        >>> x = torch.tensor([[[3.0, 4.0, 0.0]]])
        >>> projection_strength(HeadReads(x, 7 * torch.eye(3)[None, :1]))
        tensor([[0.3600]])
    """
    x, weight = reads.x.float(), reads.weight
    y = torch.einsum("bnd,hkd->bnhk", x, weight.float()) if reads.y is None else reads.y.float()
    # ‖P x‖ = ‖(W Wᵀ)^-½ W x‖
    white = whitener(weight).to(y.dtype)
    rows = y.flatten(0, 1).transpose(0, 1)  # [h, B N, D]
    offset = white.new_zeros(1) if reads.bias is None or reads.y is None else (
        reads.bias.to(white.dtype)[:, None] @ white
    )  # fmt: skip
    with exactly(x.device):
        out = scratch("inside", tuple(rows.shape), rows)
        rows = torch.baddbmm(offset.expand(rows.shape[0], 1, rows.shape[2]), rows, white, beta=-1, out=out)
    inside = torch.linalg.vector_norm(rows, dim=-1)
    length = torch.linalg.vector_norm(x, dim=-1)
    inside = inside.unflatten(1, length.shape).transpose(0, 1)
    share = (inside / length[:, None]).square().clamp(max=1)
    mask = None if reads.mask is None else reads.mask[:, None]
    values = masked_mean(share, mask)
    return values.repeat_interleave((reads.heads or values.shape[1]) // values.shape[1], dim=1)


def _mean_angle(weights: HeadWeights, one: str, other: str) -> Float[Tensor, " heads"]:
    """Mean principal angle ``[H]`` between two roles' read subspaces, radians; NaN for broken heads."""
    first, second = (weights.whitener(role) for role in (one, other))
    across = weights.across(one, other, exact_dtype(weights[one]))
    product = weights.each(first).mT @ across @ weights.each(second)
    finite = product.isfinite().all(-1).all(-1)  # svdvals raises on matrices that are not
    cosines = by_lapack(torch.linalg.svdvals, torch.where(finite[:, None, None], product, 0.0)).clamp(max=1)
    angle: Tensor = cosines.acos().mean(-1).clamp(max=math.pi / 2).to(weights[one].dtype)
    return torch.where(finite, angle, torch.nan)


@computes("query_value_angle", reads=("weights",), roles=("query", "value"))
def query_value_angle(weights: HeadWeights) -> Float[Tensor, " heads"]:
    """Mean principal angle ``[H]`` between the subspaces read by a head's queries and values, radians."""
    return _mean_angle(weights, "query", "value")


@computes("key_value_angle", reads=("weights",), roles=("key", "value"))
def key_value_angle(weights: HeadWeights) -> Float[Tensor, " heads"]:
    """Mean principal angle ``[H]`` between the subspaces read by a head's keys and values, radians."""
    return _mean_angle(weights, "key", "value")


@computes("score_norm_share", reads=("scores",))
def score_norm_share(scores: ObservedScores, part: str) -> Float[Tensor, "batch heads"]:
    r"""How scores come to differ: by the queries' lengths, by the keys', or by direction.

    .. math:: \mathrm{Cov}(t, \ln|s|) \,/\, \mathrm{Var}(\ln|s|), \quad
              \ln|s| = \ln\|q\| + \ln\|k\| + \ln|\cos|

    over visible pairs, t being one of the three terms.

    Args:
        scores: The attention call.
        part: ``"query"``, ``"key"`` or ``"direction"``.

    Returns:
        ``[B, H]``; the three add to 1, and one can be negative. NaN where all scores are alike.
    """
    return scores.norm_shares[("query", "key", "direction").index(part)]
