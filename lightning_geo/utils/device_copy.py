"""Copies of tensors that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ToHost", "without_waiting"]


def without_waiting(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device.

    CUDA stages pageable memory before the call returns, so that the tensor may then be freed. Other devices
    promise no such thing: there, the copy waits.
    """
    return x.to(device, non_blocking=device.type == "cuda")


class ToHost:
    """A tensor on its way to the host.

    Args:
        x: The tensor. On CUDA the copy is queued behind the work that computes it; elsewhere it waits.
    """

    def __init__(self, x: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._device = x.device
        if x.device.type != "cuda":
            self._copy = x.cpu()
            return
        self._copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
        # blocking: a thread that waits for it sleeps, instead of keeping a core busy
        self._event = torch.cuda.Event(blocking=True)
        self._event.record(torch.cuda.current_stream(x.device))

    @property
    def moves(self) -> bool:
        """Whether it comes from another device than the host."""
        return self._device.type != "cpu"

    @property
    def arrived(self) -> bool:
        """Whether :attr:`value` is there."""
        return self._event is None or self._event.query()

    def wait(self) -> Tensor:
        """Return :attr:`value` once it is there."""
        if self._event is not None:
            with torch.cuda.device(self._device):  # a new thread's would be the first of all devices
                self._event.synchronize()
        return self._copy

    @property
    def value(self) -> Tensor:
        """The tensor on the host, once it has arrived."""
        return self._copy
