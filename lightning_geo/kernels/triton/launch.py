"""Launching kernels: the devices and types they run on, and how tensors become arguments.

This module loads without Triton, so that it can report that Triton is missing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_geo.utils.shapes import Shaped

__all__ = [
    "DTYPES",
    "Launch",
    "as_bytes",
    "capability_of",
    "interpreted",
    "missing",
    "on_device",
    "strides",
    "unusable",
]

#: Types that the kernels read.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


#: The oldest Triton that the kernels were compiled with.
_OLDEST = (3, 6)


class Launch(NamedTuple):
    """One kernel with its arguments."""

    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]

    def run(self) -> None:
        """Start it on the current device."""
        self.kernel[(self.programs,)](**self.arguments, **self.constants, **self.options)


@functools.cache
def unusable() -> str | None:
    """Return the reason why the installed Triton is not used; None if it is."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        installed = importlib.metadata.version("triton")
        if tuple(map(int, installed.split(".")[:2])) < _OLDEST:
            return f"Triton {installed} is older than {'.'.join(map(str, _OLDEST))}"
    except (importlib.metadata.PackageNotFoundError, ValueError):  # a build of its own: it is tried
        pass
    return None


def missing(device: torch.device) -> str | None:
    """Return the reason why Triton's kernels cannot run on a device; None if they can."""
    if (reason := unusable()) is not None:
        return reason
    if not interpreted():
        if device.type != "cuda":
            return f"tensors are on {device}, not on a CUDA device"
        if torch.version.hip is not None:
            return "the device is no NVIDIA GPU"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"{torch.cuda.get_device_name(device)} has a compute capability below 8.0"
    return None


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, which kernels are launched on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; of a Hopper for any other, where kernels are interpreted."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def as_bytes(mask: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """View flags as bytes, which kernels read and write; anything else stays."""
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def strides(name: str, axes: str, tensor: Shaped[Tensor, " ..."] | None) -> dict[str, int]:
    """Strides by argument name, 0 along axes of size 1, which are read for every index."""
    if tensor is None:
        return {f"{name}_{axis}": 0 for axis in axes}
    steps = zip(axes, tensor.shape, tensor.stride(), strict=True)
    return {f"{name}_{axis}": stride if size > 1 else 0 for axis, size, stride in steps}
