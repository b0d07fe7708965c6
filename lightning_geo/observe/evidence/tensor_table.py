"""What is known of single tensors of a running model, for as long as they live."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import Tensor

__all__ = ["TensorTable"]

T = TypeVar("T")


class TensorTable(Generic[T]):
    """A dictionary from tensors, told apart by identity; an entry goes when its tensor does.

    ``WeakTensorKeyDictionary`` does the same several times slower, which counts here: a model makes thousands
    of tensors in a forward.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, x: Any) -> T | None:
        """What is known of ``x``; None for nothing."""
        entry = self._entries.get(id(x))
        return None if entry is None else entry[1]

    def set(self, x: Tensor, value: T) -> None:
        """Know this of ``x``, instead of what was known before."""
        number, entries = id(x), self._entries
        entry = entries.get(number)
        if entry is not None:
            entries[number] = entry[0], value
            return
        entries[number] = weakref.ref(x, lambda _: entries.pop(number, None) and None), value

    def drop(self, x: Any) -> None:
        """Know nothing of ``x``."""
        self._entries.pop(id(x), None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
