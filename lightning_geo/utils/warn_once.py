"""What goes wrong is said once, with its cause, and never stops a training run, unless it is asked to."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from lightning_geo.utils.errors import ArgumentError, let_go
from lightning_geo.utils.ranks import rank

__all__ = ["Complaints"]

_log = logging.getLogger(__name__)


class Complaints:
    """Turns errors into warnings, one per kind, from rank 0 alone: the others would say the same.

    Args:
        strict: Raise errors instead, on every rank.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        #: whether training has begun: from then on a wrong argument costs the samples, not the run
        self.late = False
        self._said: set[tuple[str, type | None]] = set()

    def say(self, what: str, details: str = "", kind: type | None = None, once: str | None = None) -> None:
        """Warn, once for each ``what`` (or ``once``, where it is given) and kind of error."""
        key = (what if once is None else once, kind)
        if key in self._said:
            return
        self._said.add(key)
        if rank() != 0:
            return
        message = f"GeometryMonitor: {what}{details and ': '}{details}"
        try:
            warnings.warn(message, stacklevel=3)
        except Warning:
            # Python was told to raise warnings: one raised from here would stop training for a mere note
            _log.warning(message)

    def report(self, what: str, error: Exception, when: str = "") -> None:
        """Warn of an error, or raise it if strict, or if it is an argument's before training began."""
        if self.strict or (isinstance(error, ArgumentError) and not self.late):
            raise error
        notes = ", ".join(note for note in (when, "training goes on", "said once") if note)
        self.say(what, f"{type(error).__name__}: {error} ({notes})", type(error))
        let_go(error)  # a frame that raises what it holds keeps itself, and its tensors, alive

    @contextlib.contextmanager
    def about(self, what: str, when: str = "") -> Iterator[None]:
        """Report whatever the context raises as a failure of ``what``."""
        try:
            yield
        except Exception as error:
            self.report(what, error, when)
