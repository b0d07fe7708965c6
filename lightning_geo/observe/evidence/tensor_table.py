"""A table of single tensors of a running model, for as long as they live."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import Tensor

__all__ = ["TensorTable"]

_T = TypeVar("_T")


class TensorTable(Generic[_T]):
    """A dictionary keyed by tensor identity; an entry disappears with its tensor.

    A model creates thousands of tensors in a forward pass, and ``WeakTensorKeyDictionary`` is several times
    slower.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], _T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, x: Any) -> _T | None:
        """Return the entry of ``x``; None if it has none."""
        entry = self._entries.get(id(x))
        return None if entry is None else entry[1]

    def set(self, x: Tensor, value: _T) -> None:
        """Set the entry of ``x``, in place of an earlier one."""
        number, entries = id(x), self._entries
        entry = entries.get(number)
        if entry is not None:
            entries[number] = entry[0], value
            return
        entries[number] = weakref.ref(x, lambda _: entries.pop(number, None) and None), value

    def drop(self, x: Any) -> None:
        """Remove the entry of ``x``, if any."""
        self._entries.pop(id(x), None)

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
