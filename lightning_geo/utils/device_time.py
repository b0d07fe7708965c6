"""The time that work on a device takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from lightning_geo.utils.cuda_graphs import is_capturing

__all__ = ["IdleStopwatch", "Stopwatch"]


class Stopwatch:
    """Adds up the time of stretches of work.

    Kernels run after the call that starts them returns.
    On CUDA it marks the stream and waits for nothing until it is read: a wait at each stretch would slow down
    the training that is being observed. A stream that is idle passes its marks at once, so that work of the
    CPU counts too.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._stretches: list[tuple[torch.Event, torch.Event]] = []
        #: marks to use again: making and destroying a thousand of them took a tenth of observing BERT
        self._spare: list[torch.Event] = []

    def reset(self) -> None:
        """Begin at 0."""
        self._seconds, stretches, self._stretches = 0.0, self._stretches, []
        self._spare.extend(mark for stretch in stretches for mark in stretch)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count the stretch inside the context."""
        started = self.start()
        try:
            yield
        finally:
            self.stop(started)

    def start(self) -> torch.Event | float:
        """Begin a stretch; what is returned ends it."""
        # a mark that is captured into a CUDA graph can never be read
        marks = torch.cuda.is_initialized() and not is_capturing()
        return self._mark() if marks else time.perf_counter()

    def stop(self, started: torch.Event | float) -> None:
        """End a stretch."""
        if isinstance(started, float):
            self._seconds += time.perf_counter() - started
        else:
            self._stretches.append((started, self._mark()))

    @property
    def seconds(self) -> float:
        """Seconds of all intervals that have ended; waits for the device."""
        stretches, self._stretches = self._stretches, []
        for first, last in stretches:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1e3
            self._spare.extend((first, last))
        return self._seconds

    def _mark(self) -> torch.Event:
        with contextlib.suppress(RuntimeError, IndexError):  # of another device, or none is left
            mark = self._spare.pop()
            mark.record()
            return mark
        return _mark()


class IdleStopwatch(Stopwatch):
    """Counts nothing, for work that is timed as a whole by somebody else."""

    def start(self) -> float:
        return 0.0

    def stop(self, started: torch.Event | float) -> None:
        pass

    @property
    def seconds(self) -> float:
        """Never known."""
        raise RuntimeError("this work was not timed: begin the sample with `timed=True`")


def _mark() -> torch.Event:
    # its C++ finds the current stream: in Python that took most of a mark's time, a fifth of observing BERT
    event = torch.Event("cuda", enable_timing=True)
    event.record()
    return event
