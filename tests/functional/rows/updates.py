"""Rows of what an optimizer did to weights, of weights that two layers share, and of what masks show."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from functional import definitions
from functional.row import Arguments, Array, Draw, Row
from lightning_geo import functional as F


def weights(draw: Draw) -> Arguments:
    """Weights now and before: some are as they were, some 0, some on bfloat16's grid."""
    n = draw.size(1, 40)
    before = draw.normal(n)
    now = torch.where(draw.tensor(draw.rng.random(before.shape)) < 0.5, before, draw.normal(n))
    rounded = draw.tensor(draw.rng.random(before.shape)) < 0.3
    now = torch.where(rounded, now.bfloat16().to(now.dtype), now)
    return torch.where(draw.tensor(draw.rng.random(before.shape)) < 0.1, 0.0, now), before


def weighted(draw: Draw) -> Arguments:
    now, before = weights(draw)
    return now, before, draw.gamma(now.shape[-1])


def layers(draw: Draw) -> Arguments:
    """Products of layers' weights; some layers are one module, others are copies of each other."""
    count = draw.size(2, 6)
    module = draw.rng.integers(0, count, (*draw.lead, count))
    module[..., 0], module[..., 1] = 0, 1  # at least two
    x = np.take_along_axis(draw.rng.normal(size=(*draw.lead, count, 8)), module[..., None], -2)
    return draw.tensor(x @ x.swapaxes(-1, -2)), torch.tensor(module)


def weight_similarity(products: Array, module: Array) -> Array:
    size = np.sqrt(np.diag(products))
    cosines = [
        [c for c, m in zip(row / size / own, module, strict=True) if m != number]
        for row, own, number in zip(products, size, module, strict=True)
    ]
    return np.array([np.clip(max(row), -1, 1) if row else np.nan for row in cosines])


def in_order(draw: Draw, *arguments: Tensor) -> Arguments:
    order = draw.order(arguments[0].shape[-1])
    return tuple(x[..., order] for x in arguments)


ONE = torch.ones(2, 1, 1)
TABLE = {
    "update_size": Row(
        F.update_size, weighted, definitions.update_size, gradient=None, unchanged={"order": in_order},
        undefined=((torch.ones(2, 3), torch.zeros(2, 3)),),
    ),
    "unchanged_share": Row(
        F.unchanged_share, weights, definitions.unchanged_share, gradient=None, broken=(),
        unchanged={"order": in_order},
    ),
    "bf16_share": Row(
        F.bf16_share, weights, definitions.bf16_share, gradient=None, broken=(),
        unchanged={"order": in_order}, undefined=((torch.ones(2, 3), torch.ones(2, 3)),),
    ),
    "visible_share": Row(
        F.visible_share, lambda draw: (draw.gamma(), draw.gamma() + 0.1), np.divide,
        gradient=None, infinite=False, undefined=((torch.zeros(2), torch.zeros(2)),),
    ),
    "weight_similarity": Row(
        F.weight_similarity, layers, weight_similarity, gradient=None, autocast=True, infinite=False,
        undefined=((ONE, ONE[..., 0].long()), (torch.zeros(2, 2, 2), torch.arange(2).expand(2, 2))),
    ),
}  # fmt: skip
