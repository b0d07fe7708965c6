"""Moments of all tokens from those that the programs of a kernel computed of a part each."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.kernels.workspace import constant

__all__ = ["about_the_mean", "merged"]


def about_the_mean(counts: Tensor, shifts: Tensor, sums: Tensor, products: Tensor) -> dict[str, Tensor]:
    """Moments about the mean from those about a shift close to it."""
    count = counts.sum()
    offset = sums.sum(0) / count.clamp(min=1)
    scatter = products.sum(0).baddbmm_((count * offset)[:, :, None], offset[:, None], alpha=-1)
    return {"count": count, "mean": shifts + offset, "scatter": scatter}


def merged(counts: Tensor, means: Tensor, scatters: Tensor) -> dict[str, Tensor]:
    """Merge moments about their own means (Chan, Golub & LeVeque 1983), those of P parts."""
    count = counts.sum()
    weight = counts[:, None, None]
    # about the first part's mean: their differences are small where the mean itself is large
    pilot = means[0]
    mean = pilot + (weight * (means - pilot)).sum(0) / count.clamp(min=1)
    apart = ((means - mean) * weight.sqrt()).transpose(0, 1)
    scatter = scatters.flatten(0, 1).sum(0) + apart.mT @ apart
    return {"count": count, "mean": torch.where(count > 0, mean, constant(0.0, mean)), "scatter": scatter}
