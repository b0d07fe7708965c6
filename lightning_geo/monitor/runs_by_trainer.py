"""Keeps apart what one monitor knows of several Trainers' runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["RunsByTrainer"]


class _Copied(Protocol):
    """A run that can begin another one in a copy of its monitor."""

    def copied(self, loggers: Iterable[Any]) -> Any:
        """Return the run of a copy of the monitor."""


_Run = TypeVar("_Run", bound=_Copied)


class RunsByTrainer(Generic[_Run]):
    """One run for each Trainer; it goes with the Trainer when that dies, but for the last one.

    Args:
        run: That of the first Trainer that asks.
    """

    def __init__(self, run: _Run) -> None:
        #: of the Trainer that asked last
        self.current = run
        self._trainer: Callable[[], Any] = lambda: None
        self._others: weakref.WeakKeyDictionary[Any, _Run] = weakref.WeakKeyDictionary()

    def of(self, trainer: Any, start: Callable[[], _Run]) -> _Run:
        """Return a Trainer's run.

        Args:
            trainer: Any Trainer.
            start: Begins a run for one that has none.
        """
        asked_last = self._trainer()
        if asked_last is not trainer:
            self._trainer = weakref.ref(trainer)
            known = self._others.pop(trainer, None)
            if asked_last is not None:
                self._others[asked_last] = self.current
            if known is not None:
                self.current = known
            elif asked_last is not None:
                self.current = start()
        return self.current

    def known(self, trainer: Any) -> _Run | None:
        """Return a Trainer's run, or None if it never asked."""
        return self.current if self._trainer() is trainer else self._others.get(trainer)

    def __getstate__(self) -> dict[str, Any]:
        # a copied or unpickled monitor belongs to no Trainer yet, and weak references cannot be pickled
        trainer = self._trainer()
        return {"run": self.current.copied(() if trainer is None else trainer.loggers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["run"])  # type: ignore[misc]
