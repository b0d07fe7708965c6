"""How strongly tokens lie in the subspace that a head reads, and whether values read the same as queries.

A head's *read subspace* is the row space of its weight ``[D, d]``: the directions of the stream that change
its queries, keys or values at all. There are two ways to ask how much of a token lies in it. Weighted by the
weight itself, ‖W x‖²/‖x‖² repeats ``query_norm``, up to the bias and the token's length, and grows with the
weight. Unweighted, ‖P x‖²/‖x‖² with the orthogonal projection P, is a share between
0 and 1 that no scale of the weight changes, with D/d for a token in a random direction: that one is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_geo.functional._decompositions import by_lapack
from lightning_geo.functional._tensors import exact_dtype, masked_mean
from lightning_geo.functional.head_products import HeadProducts, whitener
from lightning_geo.functional.observed_call import ObservedScores
from lightning_geo.kernels.precision import exactly
from lightning_geo.kernels.workspace import scratch, where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.shapes import Bool, Float

__all__ = [
    "HeadReads",
    "ReadMoments",
    "key_value_angle",
    "projection_strength",
    "query_value_angle",
    "score_norm_share",
    "summed_moments",
]

#: Bytes of vectors and moments that are computed at a time.
_PART_BYTES = 1 << 26


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

    @property
    def gram(self) -> Float[Tensor, "h dim dim"]:
        """``[h, D, D]``, W Wᵀ in float64."""
        weight = self.weight.to(exact_dtype(self.weight))
        return weight @ weight.mT


@dataclass(frozen=True)
class ReadMoments:
    """:class:`HeadReads` of one layer or several, summed over tokens and sequences.

    Args:
        moments: ``[..., h, D, D]``, means of (W x̂)(W x̂)ᵀ in float64.
        whitener: ``[..., h, D, D]``, see :func:`.whitener`.
        heads: H.
    """

    moments: Float[Tensor, "*batch h dim dim"]
    whitener: Float[Tensor, "*#batch h dim dim"]
    heads: int


@computes("projection_strength", reads=("inputs",), products=("moments", "whitener"))
def projection_strength(reads: HeadReads | ReadMoments) -> Float[Tensor, "*batch heads"]:
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
    # ‖P x‖ = ‖(W Wᵀ)^-½ W x‖
    if isinstance(reads, HeadReads):
        values = _of_tokens(reads)
    else:  # the mean of ‖Vᵀ y‖² is the trace of Vᵀ mean(y yᵀ) V
        white = reads.whitener
        values = (white * (reads.moments @ white)).sum((-2, -1)).clamp(0, 1).float()
    return values.repeat_interleave((reads.heads or values.shape[-1]) // values.shape[-1], dim=-1)


def _of_tokens(reads: HeadReads) -> Float[Tensor, "batch h"]:
    x, y = reads.x.float(), _outputs(reads)
    white = whitener(reads.gram).to(y.dtype)
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
    return masked_mean(share, None if reads.mask is None else reads.mask[:, None])


def _outputs(reads: HeadReads) -> Float[Tensor, "batch tokens h dim"]:
    """W x, plus the bias if it was computed by the model."""
    if reads.y is not None:
        return reads.y.float()
    return torch.einsum("bnd,hkd->bnhk", reads.x.float(), reads.weight.float())


def summed_moments(
    reads: HeadReads,
) -> tuple[Float[Tensor, "h dim dim"], Float[Tensor, " h"]]:
    """Sum the moments of :class:`ReadMoments` over sequences.

    Args:
        reads: One role's.

    Returns:
        The sum ``[h, D, D]`` of those that are finite, and how many these are, ``[h]``.
    """
    heads, dim, _ = reads.weight.shape
    total = reads.x.new_zeros(heads, dim, dim, dtype=exact_dtype(reads.x))
    count = reads.x.new_zeros(heads, dtype=exact_dtype(reads.x))
    for part in _in_parts(reads, max(1, _PART_BYTES // (8 * heads * dim * (dim + reads.x.shape[1])))):
        moments = _moments(part)
        # a vector that is not finite leaves its trace in the moment's
        finite = moments.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
        total += torch.where(finite[..., None, None], moments, 0.0).sum(0)
        count += finite.sum(0)
    return total, count


def _in_parts(reads: HeadReads, size: int) -> Iterator[HeadReads]:
    """Divide sequences into parts of so many."""
    for start in range(0, len(reads.x), size):
        part = slice(start, start + size)
        yield replace(
            reads,
            x=reads.x[part],
            y=None if reads.y is None else reads.y[part],
            mask=None if reads.mask is None else reads.mask[part],
        )


def _moments(reads: HeadReads) -> Float[Tensor, "batch h dim dim"]:
    """Mean of (W x̂)(W x̂)ᵀ over a sequence's real tokens, NaN without any."""
    x, mask = reads.x.float(), reads.mask
    with exactly(x.device):
        y = _outputs(reads)
        if reads.bias is not None and reads.y is not None:
            y = y - reads.bias.to(y.dtype)
        y, length = y.transpose(1, 2), torch.linalg.vector_norm(x, dim=-1)
        # in float64: an error of the moments counts by 1/σ² where one of a vector counts by 1/σ
        unit = scratch("unit", tuple(y.shape), x, exact_dtype(x))
        torch.div(y, length[:, None, :, None], out=unit)
        count: Tensor | int = x.shape[1]
        if mask is not None:
            unit.masked_fill_(~mask[:, None, :, None], 0.0)
            count = mask.sum(-1)[:, None, None, None]
        return (unit.mT @ unit).div_(count)


def _mean_angle(weights: HeadProducts, one: str, other: str) -> Float[Tensor, " heads"]:
    """Mean principal angle ``[H]`` between two roles' read subspaces, radians; NaN for broken heads."""
    across = weights.product(f"across.{one}.{other}")
    first, second = (weights.whitener(role) for role in (one, other))
    first, second = (w.repeat_interleave(len(across) // len(w), dim=0) for w in (first, second))
    finite = (first + second + across).isfinite().all(-1).all(-1)[:, None, None]
    # svdvals raises on one bad matrix of a batch: let it cost that one only
    matrices = (torch.where(finite, x, 0.0) for x in (first, across, second))
    cosines = by_lapack(_cosines, *matrices).clamp(max=1)
    angle: Tensor = cosines.acos().mean(-1).clamp(max=math.pi / 2).to(weights.dtype)
    return weights.each(where_defined(finite[:, 0, 0], angle))


def _cosines(
    first: Float[Tensor, "*batch D1 D1"],
    across: Float[Tensor, "*batch D1 D2"],
    second: Float[Tensor, "*batch D2 D2"],
) -> Float[Tensor, "*batch sizes"]:
    cosines: Tensor = torch.linalg.svdvals(first.mT @ across @ second)
    return cosines


def _angle_of(role: str) -> tuple[str, ...]:
    """Names of what :func:`_mean_angle` of a role and values reads."""
    return f"exact_gram.{role}", "exact_gram.value", f"across.{role}.value"


@computes("query_value_angle", reads=("weights",), roles=("query", "value"), products=_angle_of("query"))
def query_value_angle(weights: HeadProducts) -> Float[Tensor, " heads"]:
    """Mean principal angle ``[H]`` between the subspaces read by a head's queries and values, radians."""
    return _mean_angle(weights, "query", "value")


@computes("key_value_angle", reads=("weights",), roles=("key", "value"), products=_angle_of("key"))
def key_value_angle(weights: HeadProducts) -> Float[Tensor, " heads"]:
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
