"""Work outside the training thread that leaves no trace in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

import torch

from lightning_geo.utils._torch import keep_autocast_cache

__all__ = ["Background"]

Result = TypeVar("Result")


class Background(Generic[Result]):
    """A function that runs in a thread of its own, without gradient.

    What it computes with must not touch state of the whole process: the training thread runs beside it.

    Args:
        function: Without arguments.
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        self._future: Future[Result] = Future()
        #: seconds of a CPU that the thread itself took, without what it waited for
        self.seconds = 0.0

        def run() -> None:
            started = time.thread_time()
            try:
                with torch.no_grad(), keep_autocast_cache():
                    result = function()
            except BaseException as error:
                self.seconds = time.thread_time() - started
                self._future.set_exception(error)
            else:
                self.seconds = time.thread_time() - started
                self._future.set_result(result)

        try:
            threading.Thread(target=run, name="lightning_geo").start()
        except RuntimeError:  # the process may have no more threads
            run()

    @property
    def done(self) -> bool:
        """Whether :meth:`result` would not wait."""
        return self._future.done()

    def wait(self) -> None:
        """Wait for the function to end, whether it returns or raises."""
        wait([self._future])

    def result(self) -> Result:
        """Wait for the function to end, and return what it returned or raise what it raised."""
        return self._future.result()
