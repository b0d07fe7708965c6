"""How exact products of float32 are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["exact_float32_products"]


@contextmanager
def exact_float32_products(device: torch.device) -> Iterator[None]:
    """Take products of float32 in float32, whatever the user allows, while the context is open.

    Relies on ``fp32_precision`` of ``torch.backends``; checked on torch 2.11.0 and 2.13.0. torch 2.6.0
    lacks it and has one setting for all devices.
    """
    backends: Any = torch.backends
    if not hasattr(backends.mkldnn, "matmul"):
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
        return
    backend = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = before
