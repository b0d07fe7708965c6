"""Keeps apart what one monitor knows of several Trainers' runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Turns"]


class Turns:
    """Swaps the attributes that belong to a run when another Trainer calls.

    What belongs to a Trainer goes with it when it dies.

    Args:
        names: Attributes of the holder that belong to a run.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._current: Callable[[], Any] = lambda: None
        self._waiting: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()

    @property
    def current(self) -> Any:
        """Whose turn it is; None for nobody's."""
        return self._current()

    def to(self, trainer: Any, holder: Any, start: Callable[[], None]) -> None:
        """Give ``holder`` the attributes of a Trainer's run.

        Args:
            trainer: Whose turn it is.
            holder: Has the attributes.
            start: Sets all of them as for a new run.
        """
        current = self._current()
        if current is trainer:
            return
        self._current = weakref.ref(trainer)
        if current is not None:
            self._waiting[current] = {name: vars(holder)[name] for name in self._names}
            kept = self._waiting.pop(trainer, None)
            if kept is None:
                start()
            else:
                vars(holder).update(kept)

    def __reduce__(self) -> tuple[type[Turns], tuple[frozenset[str]]]:
        # a copied or unpickled monitor belongs to no Trainer yet, and weak references cannot be pickled
        return Turns, (self._names,)
