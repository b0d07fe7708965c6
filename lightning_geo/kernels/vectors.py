"""Statistics of token vectors in few reads: the hidden states of the stream, and each role's per head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_geo.kernels.precision import exactly, is_finite
from lightning_geo.kernels.workspace import scratch
from lightning_geo.utils.shapes import Bool, Float, Int64, Num

__all__ = [
    "MOMENTS",
    "STREAM",
    "HeadMoments",
    "StreamStatistics",
    "head_moments",
    "stream_statistics",
    "sum_directions",
    "token_planes",
]

#: Names of the statistics of :func:`stream_statistics`.
STREAM = ("norm", "skewness", "kurtosis", "update_ratio", "directions")

#: Names of the moments of :func:`head_moments`.
MOMENTS = ("norm", "directions", "scatter")

# from here on half of a Gram matrix is worth leaving out
_WIDE, _BLOCKS = 256, 4


@dataclass(frozen=True)
class StreamStatistics:
    r"""Statistics of a layer's hidden states, per token and per sequence.

    Planes are ``[B, N]``, float32 (float64 for float64 inputs), NaN where a token is padding, where the
    statistic is not defined, and where a feature is NaN or infinite. What was not requested is None.

    Args:
        valid: Bool ``[B, N]``: real tokens.
        finite: Bool ``[B, N]``: no feature of the token, nor of the block's input, is NaN or infinite.
        norm: :math:`\|x_i\|`.
        skewness: Third standardised moment over the token's features; not defined if they are all equal.
        kurtosis: Fourth, less 3; likewise.
        update_ratio: :math:`\|x_i - b_i\| / \|b_i\|` against the block's input b; not defined if it is 0.
        directions: ``[B, d]``, :math:`\sum_i x_i / \|x_i\|` over real tokens; a zero vector adds zero.
        directed: ``[B]``, how many real tokens are no zero vectors.
    """

    valid: Bool[Tensor, "batch tokens"]
    finite: Bool[Tensor, "batch tokens"]
    norm: Float[Tensor, "batch tokens"] | None = None
    skewness: Float[Tensor, "batch tokens"] | None = None
    kurtosis: Float[Tensor, "batch tokens"] | None = None
    update_ratio: Float[Tensor, "batch tokens"] | None = None
    directions: Float[Tensor, "batch features"] | None = None
    directed: Float[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class HeadMoments:
    r"""First and second moments of one role's vectors per head, and where they point.

    float32 (float64 for float64 inputs). What was not requested is None.

    Args:
        valid: Bool ``[B, N]``: real tokens.
        norm: ``[B, H, N]``, :math:`\|x_i\|`, NaN for padding.
        directions: ``[B, H, D]``, :math:`\sum_i x_i / \|x_i\|` over real tokens; a zero vector adds zero.
        directed: ``[B, H]``, how many real tokens are no zero vectors.
        count: Scalar, real tokens in all sequences.
        mean: ``[H, D]`` over them.
        scatter: ``[H, D, D]``, :math:`\sum_i (x_i - \bar x)(x_i - \bar x)^\top` over them.
    """

    valid: Bool[Tensor, "batch tokens"]
    norm: Float[Tensor, "batch heads tokens"] | None = None
    directions: Float[Tensor, "batch heads dim"] | None = None
    directed: Float[Tensor, "batch heads"] | None = None
    count: Num[Tensor, ""] | None = None
    mean: Float[Tensor, "heads dim"] | None = None
    scatter: Float[Tensor, "heads dim dim"] | None = None


def stream_statistics(
    x: Float[Tensor, "batch tokens features"],
    mask: Bool[Tensor, "batch tokens"] | None,
    before: Float[Tensor, "batch tokens features"] | None,
    requested: frozenset[str],
) -> StreamStatistics:
    """Compute the requested statistics of hidden states on any device.

    Args:
        x: ``[B, N, d]``.
        mask: Bool ``[B, N]``, True = real token; None if all are.
        before: The block's input, like ``x``; without it there is no ``update_ratio``.
        requested: Which of ``STREAM``.
    """
    with torch.no_grad(), exactly(x.device):
        x = _wide(x)
        valid = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
        norm = torch.linalg.vector_norm(x, dim=-1)
        planes, finite = token_planes(x, norm, before, requested)
        if mask is not None:
            planes = {name: torch.where(mask, plane, torch.nan) for name, plane in planes.items()}
        directions = directed = None
        if "directions" in requested:
            directions, directed = sum_directions(x, norm, mask)
        return StreamStatistics(valid, finite, **planes, directions=directions, directed=directed)


def token_planes(
    x: Float[Tensor, "*batch n d"],
    norm: Float[Tensor, "*batch n"],
    before: Float[Tensor, "*batch n d"] | None,
    requested: frozenset[str],
) -> tuple[dict[str, Float[Tensor, "*batch n"]], Bool[Tensor, "*batch n"]]:
    """Compute the requested planes of ``StreamStatistics``, and ``finite``, padding included.

    A gradient passes if one is on.

    Args:
        x: ``[..., n, d]``.
        norm: Its tokens' lengths ``[..., n]``.
        before: The block's input, like ``x``.
        requested: Which of ``STREAM``.
    """
    planes = {"norm": norm} if "norm" in requested else {}
    longest = norm
    if before is not None and "update_ratio" in requested:
        before = _wide(before)
        length = torch.linalg.vector_norm(before, dim=-1)
        out = None if torch.is_grad_enabled() else scratch("deviation", tuple(x.shape), x)
        change = torch.linalg.vector_norm(torch.sub(x, before, out=out), dim=-1)
        ratio = change / torch.where(length == 0, 1.0, length)
        planes["update_ratio"] = torch.where(length == 0, torch.nan, ratio)
        longest = torch.maximum(norm, length)  # not finite where one of them is not
    if requested & {"skewness", "kurtosis"}:
        shape = _shape(x)
        planes.update({name: plane for name, plane in shape.items() if name in requested})
    return planes, is_finite(longest)


def head_moments(
    x: Float[Tensor, "batch *heads tokens dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    requested: frozenset[str],
) -> HeadMoments:
    """Compute the requested moments of one role's vectors on any device.

    Args:
        x: ``[B, H, N, D]``, any strides; or ``[B, L, H, N, D]``, heads of several layers in a row.
        mask: Bool ``[B, N]``, True = real token; None if all are.
        requested: Which of ``MOMENTS``; ``"scatter"`` brings ``count`` and ``mean``.
    """
    with torch.no_grad(), exactly(x.device):
        # tokens first: models project to [B, N, H * D], and reading against that order is slow
        x = _wide(x).flatten(1, -3).transpose(1, 2)
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        fields: dict[str, Tensor] = {}
        if requested & {"norm", "directions"}:
            norm = torch.linalg.vector_norm(x, dim=-1)
            if "directions" in requested:
                fields["directions"], fields["directed"] = sum_directions(
                    x.transpose(1, 2), norm.transpose(1, 2), None if mask is None else mask[:, None]
                )
            if "norm" in requested:
                norm = norm if mask is None else torch.where(mask[..., None], norm, torch.nan)
                fields["norm"] = norm.transpose(1, 2)
        if "scatter" in requested:
            fields |= _scatter(x, mask)
        return HeadMoments(valid, **fields)


def _scatter(
    x: Float[Tensor, "batch tokens heads dim"], mask: Bool[Tensor, "batch tokens"] | None
) -> dict[str, Num[Tensor, " ..."]]:
    """Count, mean and scatter of ``[B, N, H, D]`` over real tokens."""
    heads, width = x.shape[2:]
    x = x.flatten(2).flatten(0, 1)
    real = None if mask is None else mask.flatten()
    if real is not None and x.device.type == "cpu":  # padding is not even read
        return _scatter_of(x, real.nonzero().squeeze(-1), None, heads, width)
    # on a GPU the host would wait for the number of real tokens, so padding is zeroed instead
    return _scatter_of(x, None, real, heads, width)


def _scatter_of(
    x: Float[Tensor, "tokens features"],
    rows: Int64[Tensor, " kept"] | None,
    real: Bool[Tensor, " tokens"] | None,
    heads: int,
    width: int,
) -> dict[str, Num[Tensor, " ..."]]:
    """Count, mean and scatter of ``[T, H * D]``, of some rows, or of those that are real."""
    count = x.new_full((), x.shape[0] if rows is None else rows.shape[0], dtype=torch.int64)
    centred = scratch("centred", (x.shape[0] if rows is None else rows.shape[0], x.shape[1]), x)
    source = x if rows is None else torch.index_select(x, 0, rows, out=centred)
    if real is not None:
        count, source = real.sum(), torch.where(real[:, None], x, 0.0)  # padding may hold NaN
        mean = source.sum(0) / count.clamp(min=1)
    else:
        mean = source.sum(0) / max(len(source), 1)
    # centred before the product: float32 would lose a small spread around a large mean
    torch.sub(source, mean, out=centred)
    if real is not None:
        centred.mul_(real[:, None])
    scatter = _gram(centred.view(-1, heads, width).transpose(0, 1))
    return {"count": count, "mean": mean.view(heads, width), "scatter": scatter}


def sum_directions(
    x: Float[Tensor, "*batch n d"], norm: Float[Tensor, "*batch n"], mask: Bool[Tensor, "*#batch #n"] | None
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch"]]:
    """Add up the unit vectors of real tokens, as one weighted sum.

    Args:
        x: ``[..., n, d]``.
        norm: Its tokens' lengths ``[..., n]``.
        mask: Bool ``[..., n]`` (sizes equal or 1), True = real token; None if all are.

    Returns:
        The sum ``[..., d]``, and how many real tokens are no zero vectors ``[...]``.
    """
    directed = norm != 0
    if mask is not None:
        x = _without_padding(x, norm, mask)
        directed = directed & mask
    weights = torch.where(directed, norm, torch.inf).reciprocal()
    if x.dim() == 3:  # one read, and no product in memory
        with exactly(x.device):
            return torch.bmm(weights[:, None], x)[:, 0], directed.sum(-1, dtype=x.dtype)
    # in the order in which heads and tokens lie in memory: nothing is read across
    across = x.dim() > 3 and x.stride(-3) < x.stride(-2)
    if across:
        x, weights = x.transpose(-3, -2), weights.transpose(-2, -1)
    out = None if torch.is_grad_enabled() else scratch("directions", tuple(x.shape), x)
    total = torch.mul(x, weights[..., None], out=out).sum(-3 if across else -2)
    return total, directed.sum(-1, dtype=x.dtype)


def _wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """float32, or float64 if it is that already: half precision sums lose everything past three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _without_padding(
    x: Float[Tensor, "*batch n d"], norm: Float[Tensor, "*batch n"], mask: Bool[Tensor, "*#batch #n"]
) -> Float[Tensor, "*batch n d"]:
    """Zero the padding where it holds NaN or infinity, which would survive a multiplication by zero."""
    # checking first saves a pass on a CPU; on a GPU the host would wait for the result
    if x.device.type == "cpu" and bool(is_finite(norm).all()):
        return x
    return torch.where(mask[..., None], x, 0.0)


def _shape(x: Float[Tensor, "*batch d"]) -> dict[str, Float[Tensor, "*batch"]]:
    """Skewness and excess kurtosis over features; NaN where they are all equal."""
    mean = x.mean(-1, keepdim=True)
    # the intermediates are kept only for a gradient; without one, two buffers are reused
    reused = not torch.is_grad_enabled()
    first = scratch("deviation", tuple(x.shape), x) if reused else None
    second = scratch("square", tuple(x.shape), x) if reused else None
    deviation = torch.sub(x, mean, out=first)
    width = x.shape[-1]
    # a norm takes one read; a mean of squares would write the squares first
    variance = torch.linalg.vector_norm(deviation, dim=-1, keepdim=True).square() / width
    # A token whose features are all equal has no shape; rounding of its mean must not give it one
    # (the threshold is scipy.stats.skew's).
    constant = variance <= (torch.finfo(x.dtype).resolution * mean).square()
    # standardised first: x⁴ itself may overflow
    z = torch.mul(deviation, torch.where(constant, 1.0, variance).rsqrt(), out=first)
    square = torch.mul(z, z, out=second)
    skewness = torch.mul(z, square, out=first).mean(-1)
    kurtosis = torch.linalg.vector_norm(square, dim=-1).square() / width - 3
    shape = {"skewness": skewness, "kurtosis": kurtosis}
    return {name: torch.where(constant[..., 0], torch.nan, plane) for name, plane in shape.items()}


def _gram(x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch d d"]:
    """``xᵀx`` of ``[..., n, d]``; of a wide one the lower blocks are mirrored, not computed."""
    width = x.shape[-1]
    if width < _WIDE:
        return x.mT @ x
    result = x.new_empty(*x.shape[:-2], width, width)
    step = -(-width // _BLOCKS)
    for start in range(0, width, step):
        rows = slice(start, min(start + step, width))
        part = x[..., rows].mT @ x[..., start:]
        result[..., rows, start:] = part
        result[..., start:, rows] = part.mT
    return result
