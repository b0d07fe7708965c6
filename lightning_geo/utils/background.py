"""Work outside the training thread that leaves no trace in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from lightning_geo.utils._torch import keep_autocast_cache

__all__ = ["Background"]

_Result = TypeVar("_Result")


class Background(Generic[_Result]):
    """A function that runs in a thread of its own, without gradient.

    What it computes with must not touch state of the whole process: the training thread runs beside it.

    Args:
        function: Without arguments.
    """

    def __init__(self, function: Callable[[], _Result]) -> None:
        self._function: Callable[[], _Result] | None = function
        self._results: list[_Result] = []
        self._error: BaseException | None = None
        #: seconds of a CPU that the thread itself took, without what it waited for
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="lightning_geo")
        try:
            self._thread.start()
        except RuntimeError:  # the process may have no more threads
            self._run()

    def _run(self) -> None:
        function, self._function = self._function, None
        assert function is not None
        started = time.thread_time()
        try:
            with torch.no_grad(), keep_autocast_cache():
                self._results.append(function())
        except BaseException as error:
            self._error = error
        self.seconds = time.thread_time() - started

    @property
    def done(self) -> bool:
        """Whether :meth:`result` would not wait."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the function to end, whether it returns or raises."""
        if self._thread.ident is not None:
            self._thread.join()

    def result(self) -> _Result:
        """Wait for the function to end, and return what it returned or raise what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]
