"""Detects that an exception left a training step of ``transformers.Trainer``: no event reports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["StepGuard"]


class StepGuard:
    """Stands in for a Trainer's ``training_step`` while it trains, and calls functions at an exception in it.

    Forward and backward pass run there, in which something may be observed. Ctrl-C in a forward pass ends no
    hook of the modules that run, so that what they have begun would stay on in the whole process.

    Args:
        trainer: Whose.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        #: one that somebody has set on the instance
        self._set = vars(trainer).get("training_step")
        self._own = trainer.training_step
        self._functions: list[Callable[[], object]] = []

    @classmethod
    def of(cls, trainer: Any) -> StepGuard:
        """Return the guard of a Trainer; put one in place if there is none.

        Args:
            trainer: Any Trainer.
        """
        guard = vars(trainer).get("training_step")
        if not isinstance(guard, StepGuard):
            guard = trainer.training_step = StepGuard(trainer)
        return guard

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._own(*args, **kwargs)
        except BaseException:
            for function in tuple(self._functions):
                function()
            raise

    def add(self, function: Callable[[], object]) -> Callable[[], None]:
        """Call a function after an exception; returns what undoes this, which may be called twice."""
        self._functions.append(function)

        def undo() -> None:
            if function in self._functions:
                self._functions.remove(function)
            if not self._functions and vars(self._trainer).get("training_step") is self:
                del self._trainer.training_step
                if self._set is not None:
                    self._trainer.training_step = self._set

        return undo

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _itself, (self._own,)


def _itself(value: Any) -> Any:
    return value
