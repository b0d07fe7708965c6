"""Sums of tokens with random signs, which reduce many tokens to a few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.kernels.precision import exactly
from lightning_geo.kernels.workspace import constant, kept_of
from lightning_geo.utils.shapes import Bool, Float, Int64

__all__ = ["sketch"]

#: How many numbers of tokens less their mean are made at a time.
_AT_ONCE = 2**26


def sketch(
    x: Float[Tensor, "tokens layers features"],
    real: Bool[Tensor, " tokens"] | None,
    draws: Float[Tensor, "layers rows tokens"],
    before: Float[Tensor, "layers rows features"] | None,
) -> tuple[Float[Tensor, "layers rows features"], Float[Tensor, "layers rows"]]:
    r"""Add up the real tokens of each layer with random signs, on any device.

    .. math:: Y = R X, \quad R_{ai} = \pm 1

    Args:
        x: ``[T, L, d]``.
        real: Bool ``[T]``, True = real token; None if all are.
        draws: ``[L, r, T]``, 0 for a sign of -1, 1 for one of 1; overwritten.
        before: Sketches of other tokens, which are added to in place; None if there are none.

    Returns:
        The sketches ``[L, r, d]``, and the sums of real tokens' signs ``[L, r]``, in the type of ``draws``.
    """
    total = None
    step = max(1, _AT_ONCE // (x.shape[1] * x.shape[2]))
    with torch.no_grad(), exactly(x.device):
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            flags = None if real is None else real[part]
            before, signs = _sketch(x[part], flags, draws[..., part], before)
            total = signs if total is None else total + signs
    assert before is not None
    assert total is not None
    return before, total


def _sketch(
    x: Float[Tensor, "tokens layers features"],
    real: Bool[Tensor, " tokens"] | None,
    draws: Float[Tensor, "layers rows tokens"],
    before: Float[Tensor, "layers rows features"] | None,
) -> tuple[Float[Tensor, "layers rows features"], Float[Tensor, "layers rows"]]:
    tokens, dtype = x.transpose(0, 1), draws.dtype
    signs = draws.sub_(0.5)
    if real is None:
        signs.mul_(2)
        mean = tokens.mean(1, keepdim=True, dtype=dtype)
    else:
        flags, twice, count = kept_of(_flags, (real,), dtype)
        tokens = torch.where(flags, tokens, constant(0.0, tokens))  # padding may hold NaN
        signs.mul_(twice)
        mean = tokens.sum(1, keepdim=True, dtype=dtype) / count
    total = signs.sum(-1)
    # centred before the product, which would lose a small spread around a large mean
    centred = tokens - mean
    sketches = signs @ centred if before is None else before.baddbmm_(signs, centred)
    return sketches.addcmul_(total[..., None], mean), total


def _flags(
    tensors: tuple[Bool[Tensor, " tokens"]], dtype: torch.dtype
) -> tuple[Bool[Tensor, "tokens 1"], Float[Tensor, " tokens"], Int64[Tensor, ""]]:
    """Flags of real tokens ``[T, 1]``, twice the same as numbers ``[T]``, and how many there are."""
    (real,) = tensors
    return real[:, None], real.to(dtype) * 2, real.sum().clamp(min=1)
