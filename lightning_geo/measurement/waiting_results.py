"""Results of several layers, kept until one operation serves all that are alike."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch

__all__ = ["WaitingResults"]


class _Result(Protocol):
    @property
    def layout(self) -> tuple[object, ...]:
        """Equal for what one operation serves."""

    @property
    def nbytes(self) -> int:
        """Bytes that wait."""


_ResultT = TypeVar("_ResultT", bound=_Result)


class WaitingResults(Generic[_ResultT]):
    """Keeps results until :meth:`finish`, or until they hold more memory than they may.

    Args:
        compute: A method, called without gradients for all results of one layout, oldest first.
    """

    def __init__(self, compute: Callable[[list[_ResultT]], None]) -> None:
        # A cycle with the method's object would hold the memory of a sample that is given up until the
        # garbage collector runs.
        self._compute = weakref.WeakMethod(compute)
        self._alike: dict[tuple[object, ...], list[_ResultT]] = {}
        self._nbytes = 0

    def add(self, *results: _ResultT, limit: int) -> None:
        """Keep results, and finish where all that wait hold more than ``limit`` bytes."""
        for result in results:
            self._alike.setdefault(result.layout, []).append(result)
            self._nbytes += result.nbytes
        if self._nbytes > limit:
            self.finish()

    def finish(self) -> None:
        """Compute what waits, and let go of it."""
        alike, self._alike, self._nbytes = self._alike, {}, 0
        compute = self._compute()
        assert compute is not None
        with torch.no_grad():
            for results in alike.values():
                compute(results)
