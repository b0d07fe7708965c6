"""Memory that the calls of one sample share: on a CPU, pages touched for the first time cost more than the
arithmetic done on them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_geo.utils._torch import identity_of
from lightning_geo.utils.shapes import Bool, Float, Shaped

__all__ = ["constant", "kept", "kept_of", "reuse_scratch", "scratch", "where_defined", "zeros"]

_local = threading.local()


@contextmanager
def reuse_scratch() -> Iterator[None]:
    """Let :func:`scratch` reuse its memory until the context ends."""
    if getattr(_local, "buffers", None) is not None:
        yield
        return
    _local.buffers = {}
    try:
        yield
    finally:
        _local.buffers = None


def scratch(
    name: str, shape: tuple[int, ...], like: Shaped[Tensor, " ..."], dtype: torch.dtype | None = None
) -> Shaped[Tensor, " ..."]:
    """Return contiguous, uninitialised memory, shared between calls within :func:`reuse_scratch`.

    Args:
        name: Key of the memory: the next call with the same name gets the same memory.
        shape: Its shape.
        like: Gives the device, and the type without ``dtype``.
        dtype: Its type.
    """
    dtype = dtype or like.dtype
    size = math.prod(shape)
    buffers: dict[tuple[object, ...], Tensor] | None = getattr(_local, "buffers", None)
    if buffers is None:
        return torch.empty(shape, device=like.device, dtype=dtype)
    key = name, like.device, dtype
    if key not in buffers or buffers[key].numel() < size:
        buffers[key] = torch.empty(size, device=like.device, dtype=dtype)
    return buffers[key][:size].view(shape)


#: Numbers that one operation sets to zero, and the steps in which they are given out: kernels are compiled
#: for aligned memory.
_ZEROS, _ALIGNED = 1 << 14, 64


def zeros(shape: tuple[int, ...], like: Shaped[Tensor, " ..."], dtype: torch.dtype) -> Shaped[Tensor, " ..."]:
    """Return contiguous zeros; within :func:`reuse_scratch`, one operation sets those of many calls.

    Args:
        shape: Its shape.
        like: Gives the device.
        dtype: Its type.
    """
    size = math.prod(shape)
    buffers: dict[tuple[object, ...], Any] | None = getattr(_local, "buffers", None)
    if buffers is None or size > _ZEROS:
        return torch.zeros(shape, device=like.device, dtype=dtype)
    key = "zeros", like.device, dtype
    left = buffers.get(key)
    if left is None or left.numel() < size:
        left = torch.zeros(_ZEROS, device=like.device, dtype=dtype)
    buffers[key] = left[-(-size // _ALIGNED) * _ALIGNED :]
    return left[:size].view(shape)


def kept(make: Callable[..., Shaped[Tensor, " ..."]], *arguments: Any) -> Shaped[Tensor, " ..."]:
    """Return ``make(*arguments)``, made once within :func:`reuse_scratch`; nobody may write to it."""
    buffers: dict[tuple[object, ...], Tensor] | None = getattr(_local, "buffers", None)
    if buffers is None:
        return make(*arguments)
    key = make, *arguments
    if key not in buffers:
        buffers[key] = make(*arguments)
    return buffers[key]


def kept_of(
    make: Callable[..., Any], tensors: tuple[Shaped[Tensor, " ..."] | None, ...], *arguments: Any
) -> Any:
    """Return ``make(tensors, *arguments)``, made once for the same tensors within :func:`reuse_scratch`.

    Tensors are the same if they are over the same memory, which was not written to in between; they are held,
    so that no other tensor takes their place. Torch does not count what is written to tensors made in
    inference mode: for these, the result is made anew.
    """
    buffers: dict[tuple[object, ...], Any] | None = getattr(_local, "buffers", None)
    if buffers is None or any(x is not None and x.is_inference() for x in tensors):
        return make(tensors, *arguments)
    key = make, *(None if x is None else identity_of(x) for x in tensors), *arguments
    if key not in buffers:
        buffers[key] = tensors, make(tensors, *arguments)
    return buffers[key][1]


def constant(number: float, like: Shaped[Tensor, " ..."]) -> Any:
    """Return a number for ``torch.where``, as a tensor that is made once within :func:`reuse_scratch`.

    ``torch.where`` makes a tensor of every bare number, which takes a launch each time.

    Args:
        number: The number.
        like: Gives the device and the type.
    """
    if getattr(_local, "buffers", None) is None:
        return number
    return kept(_scalar, number, like.dtype, like.device)


def where_defined(
    condition: Bool[Tensor, "*#shape"], values: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*#shape"]:
    """Return values where a condition holds, NaN elsewhere: there they are not defined."""
    result: Tensor = torch.where(condition, values, constant(torch.nan, values))
    return result


def _scalar(number: float, dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, ""]:
    return torch.full((), number, dtype=dtype, device=device)
