"""What goes wrong is said once, with its cause, and never stops a training run, unless it is asked to."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

__all__ = ["ArgumentError", "Complaints"]


class ArgumentError(ValueError):
    """An argument that cannot be right, found out before training began: always raised."""


class Complaints:
    """Turns errors into warnings, one per kind.

    Args:
        strict: Raise errors instead.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._said: set[tuple[str, type | None]] = set()

    def say(self, what: str, details: str = "", kind: type | None = None, once: str | None = None) -> None:
        """Warn, once for each ``what`` (or ``once``, where it is given) and kind of error."""
        key = (what if once is None else once, kind)
        if key not in self._said:
            self._said.add(key)
            warnings.warn(f"GeometryMonitor: {what}{details and ': '}{details}", stacklevel=3)

    def report(self, what: str, error: Exception, when: str = "") -> None:
        """Warn of an error, or raise it if strict."""
        if self.strict or isinstance(error, ArgumentError):
            raise error
        notes = ", ".join(note for note in (when, "training goes on", "said once") if note)
        self.say(what, f"{type(error).__name__}: {error} ({notes})", type(error))

    @contextlib.contextmanager
    def about(self, what: str, when: str = "") -> Iterator[None]:
        """Report whatever the context raises as a failure of ``what``."""
        try:
            yield
        except Exception as error:
            self.report(what, error, when)
