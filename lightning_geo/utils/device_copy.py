"""Copies of small tensors to a device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["without_waiting"]


def without_waiting(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device.

    CUDA stages pageable memory before the call returns, so that the tensor may then be freed. Other devices
    promise no such thing: there, the copy waits.
    """
    return x.to(device, non_blocking=device.type == "cuda")
