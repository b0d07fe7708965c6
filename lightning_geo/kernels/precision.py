"""The context that every backend computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_geo.utils._torch import exact_float32_products
from lightning_geo.utils.shapes import Bool, Float

__all__ = ["exactly", "is_finite"]


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """No autocast, and float32 products in float32: TF32 and bf16 ones leave three digits.

    Args:
        device: Where the products are taken.
    """
    with exact_float32_products(device), torch.autocast(device.type, enabled=False):
        yield


def is_finite(x: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """``torch.isfinite`` in two operations, where that takes four."""
    return x.sub(x) == 0
