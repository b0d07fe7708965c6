"""Head similarities of wide layers, from a sketch of the heads' outputs in place of their joint covariance.

The covariance of 32 heads of 128 takes 134 MB a layer. A sketch takes 8 MB: random signs add the tokens up to
a few hundred mixed tokens. It is linear in the tokens, so that sketches of sequences, micro-batches and ranks
add up, and the mean can be removed when all of them are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_geo.kernels import sketch
from lightning_geo.kernels.precision import exactly
from lightning_geo.kernels.workspace import constant, where_defined
from lightning_geo.measurement.batches import limit_of
from lightning_geo.measurement.derived_stack import in_parts
from lightning_geo.measurement.sums import LayerSums, joined

__all__ = ["ROWS", "add_sketches", "sketched_norms"]

#: Rows of a sketch: 32 layers of 4,096 features stay below 400 MB, the heads' own covariances included.
ROWS = 480

#: Tokens whose signs are drawn at a time; more where what a device may gather holds them.
_TOKENS = 4096

#: Spread around a mean of length 1 below which rounding to float32 shows in similarities.
_FINEST = 100 * 2.0**-24


def add_sketches(
    layers: Sequence[LayerSums],
    x: Tensor,
    mask: Tensor | None,
    generators: Sequence[torch.Generator],
) -> None:
    r"""Add sketches of the real tokens to the sums of L layers; see :func:`.sketches.sketch`.

    Every token of every layer gets signs of its own: calls of one layer must not share any, or their tokens
    would be confused.

    Args:
        layers: L layers.
        x: ``[B, N, L, H * D]``.
        mask: Bool ``[B, N]``, True = real token; None if all are.
        generators: Sources of each layer's signs, on the device of ``x``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    tokens = x.flatten(0, 1)
    real = None if mask is None else mask.flatten()
    sketches = sums_of_signs = None
    step = _TOKENS * max(1, limit_of(x.device) // (_TOKENS * len(layers) * ROWS * dtype.itemsize))
    for start in range(0, len(tokens), step):
        part = slice(start, start + step)
        draws = torch.empty(len(layers), ROWS, len(tokens[part]), dtype=dtype, device=x.device)
        for own, generator in zip(draws, generators, strict=True):
            own.bernoulli_(0.5, generator=generator)
        sketches, signs = sketch(tokens[part], None if real is None else real[part], draws, sketches)
        sums_of_signs = signs if sums_of_signs is None else sums_of_signs + signs
    assert sketches is not None
    assert sums_of_signs is not None
    for layer, *sums in zip(layers, sketches, sums_of_signs, strict=True):
        for name, value in zip(("heads.sketch", "heads.signs"), sums, strict=True):
            # float32, unlike other sums: it is linear, so a large mean costs no more than its own rounding
            layer.sums[name] = layer.sums[name] + value if name in layer.sums else value


def sketched_norms(layers: Sequence[LayerSums], covariance: Tensor) -> Tensor:
    r"""Estimate the Frobenius norms of the blocks of the covariance of all heads' outputs.

    With y_a the rows of the centred sketch, r of them, :math:`\|S_{hh'}\|_F^2` is estimated without bias by

    .. math:: \frac{1}{r (r - 1)} \sum_{a \ne b} (y_a \cdot y_b)_h \, (y_a \cdot y_b)_{h'}

    The estimates are divided by those of the heads' own norms, which are known: equal heads come out as
    equal, and errors shrink as heads become alike. The standard error of a similarity s (linear CKA) is at
    most :math:`4 (1 - s) / \sqrt{r}` to first order in :math:`1 / \sqrt{r}`; in heads of one dimension, the
    worst that are known, it is :math:`2 \sqrt{s} (1 - s) / \sqrt{r}`, 0.035 at most. That of the sum of all
    squared norms, which complementarity is made of, is at most :math:`4 \sqrt{2 / r}` of it, 0.06 in the
    worst that are known. An estimate below 0 counts as 0: the sum is high by up to :math:`0.6 H / r` of it,
    where heads are of one dimension and unrelated.

    Args:
        layers: L layers of H heads, with sketches, counts and sums.
        covariance: ``[L, H, D, D]``, the heads' own.

    Returns:
        ``[L, H, H]``, its diagonal the norms of the heads' own; NaN in row and column of a head whose spread
        is lost in the rounding of its mean.

    Source: Alon, Matias & Szegedy 1996 (random signs); Song et al. 2012 (unbiased HSIC).
    """
    heads = covariance.shape[1]
    own = torch.linalg.matrix_norm(covariance)
    count, total = (
        torch.stack([layer.sums[f"output.{name}"] for layer in layers]) for name in ("count", "sum")
    )
    mean = total / count[:, None, None]
    spread = covariance.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    known = (own == 0) | (spread > _FINEST * torch.linalg.vector_norm(mean, dim=-1))
    own = where_defined(known, own)
    parts = in_parts([*range(len(layers))], 4 * heads * ROWS * ROWS, covariance.device)
    products = joined([_products([layers[i] for i in part], mean[part[0] : part[-1] + 1]) for part in parts])
    measured = products.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(measured > 0, measured, constant(1.0, measured)).rsqrt()
    similarity = (products * scale[:, :, None] * scale[:, None, :]).clamp(0, 1)
    norms = (similarity * own[:, :, None] * own[:, None, :]).sqrt()
    itself = torch.eye(heads, dtype=torch.bool, device=norms.device)
    return torch.where(itself, own[:, :, None], norms)


def _products(layers: Sequence[LayerSums], mean: Tensor) -> Tensor:
    """Estimate the squared norms ``[L, H, H]``, up to a factor for each head, with means ``[L, H, D]``."""
    sketch, signs = (
        torch.stack([layer.sums[f"heads.{name}"] for layer in layers]) for name in ("sketch", "signs")
    )
    y = torch.addcmul(sketch.to(mean), signs.to(mean)[:, :, None], mean.flatten(1)[:, None], value=-1)
    y = y.unflatten(-1, (mean.shape[1], -1)).transpose(1, 2)  # [L, H, r, D]
    size = torch.linalg.vector_norm(y, dim=(2, 3), keepdim=True)
    y = (y / torch.where(size == 0, constant(1.0, size), size)).float()
    with exactly(y.device):
        products = y @ y.mT  # [L, H, r, r]
        products.diagonal(dim1=-2, dim2=-1).zero_()
        # one product over all r² would run in a single block of a GPU: 7 ms for 32 heads on an H200
        rows = products.transpose(1, 2)  # [L, r, H, r]
        estimates: Tensor = (rows @ rows.mT).sum(1)
        return estimates
