"""Moments of all tokens from those that the programs of a kernel computed of a part each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_geo.kernels.precision import exactly
from lightning_geo.kernels.workspace import constant

__all__ = ["AXES", "WIDE_AXES", "about_the_mean", "merged", "merged_fields", "merged_wide"]

#: The heads' axis of what each kernel leaves.
WIDE_AXES = {"counts": None, "shifts": 0, "sums": 1, "products": 1}
AXES = {"norm": 1, "sums": 2, "directed": 2, "counts": None, "means": 2, "scatters": 2}


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


def merged_wide(partial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :class:`.HeadMoments` has of wide vectors."""
    with torch.no_grad(), exactly(partial["sums"].device):
        return about_the_mean(**partial)


def merged_fields(partial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What it has of other vectors."""
    fields = {"norm": partial["norm"]} if "norm" in partial else {}
    with torch.no_grad(), exactly(next(iter(partial.values())).device):
        if "sums" in partial:
            fields |= {"directions": partial["sums"].sum(1), "directed": partial["directed"].sum(1)}
        if "counts" in partial:
            fields |= merged(partial["counts"].flatten(), partial["means"].flatten(0, 1), partial["scatters"])
    return fields
