"""A tap's own computations while a model runs: unobserved, timed, without gradient and autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lightning_geo.observe.replay.undisturbed_run import device_of
from lightning_geo.utils._torch import without_function_modes
from lightning_geo.utils.cuda_graphs import CaptureError, is_capturing
from lightning_geo.utils.device_time import IdleStopwatch, Stopwatch

__all__ = ["OwnWork"]


_NOTHING = contextlib.nullcontext()


class OwnWork:
    """Contexts for a tap's own computations.

    Args:
        model: The observed model; autocast is off on its devices.
    """

    def __init__(self, model: nn.Module) -> None:
        devices = {p.device.type for p in model.parameters()} | {"cpu", device_of(model).type}
        self._devices = sorted(devices - {"meta"})
        #: whether a computation of the tap runs, or a function whose call the tap has already seen
        self.busy = False
        self._stopwatch = Stopwatch()
        #: time of the computations so far
        self.stopwatch = self._stopwatch

    def begin(self, *, timed: bool) -> None:
        """Begin at 0, and time the computations or not."""
        self._stopwatch.reset()
        self.stopwatch = self._stopwatch if timed else IdleStopwatch()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Compute without gradient, in full precision and without torch function modes.

        Raises:
            CaptureError: If the model has begun to capture a CUDA graph: what ran here would be part of it.
        """
        if is_capturing():
            raise CaptureError
        busy, self.busy, started = self.busy, True, self.stopwatch.start()
        # at hundreds of calls a sample, entering what is already so would cost a tenth of its time
        on = [device for device in self._devices if torch.is_autocast_enabled(device)]
        try:
            with without_function_modes(), torch.no_grad() if torch.is_grad_enabled() else _NOTHING:
                if not on:
                    yield
                    return
                with contextlib.ExitStack() as stack:
                    for device in on:
                        stack.enter_context(torch.autocast(device, enabled=False))
                    yield
        finally:
            self.busy = busy
            if not busy:
                self.stopwatch.stop(started)

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Compute unobserved, in the model's precision and with gradient: the model uses the result."""
        busy, self.busy = self.busy, True
        try:
            with without_function_modes():
                yield
        finally:
            self.busy = busy
