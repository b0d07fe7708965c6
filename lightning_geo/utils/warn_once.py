"""Errors as warnings, each given once with its cause; they never stop training, unless `strict` is set."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from lightning_geo.utils.errors import ArgumentError, let_go
from lightning_geo.utils.ranks import everyones, is_known_to_rank_zero, rank

__all__ = ["WarnOnce"]

_log = logging.getLogger(__name__)


#: ``what``, or what stands for it, and the kind of error.
_Key = tuple[str, type | None]


class WarnOnce:
    """Turns errors into warnings, one per kind, from rank 0 alone: the others would mostly say the same.

    The other ranks keep theirs until :meth:`exchange`, where rank 0 gives those that it has not given itself.

    Args:
        strict: Raise errors instead, on every rank.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        #: whether training has begun: from then on a wrong argument costs the samples, not the run
        self.late = False
        self._said: set[_Key] = set()
        #: by another rank than 0
        self._unsaid: list[tuple[_Key, str]] = []

    def say(self, what: str, details: str = "", kind: type | None = None, once: str | None = None) -> None:
        """Warn, once for each ``what`` (or ``once``, where it is given) and kind of error."""
        key = (what if once is None else once, kind)
        if key in self._said:
            return
        self._said.add(key)
        warning = f"{what}{details and ': '}{details}"
        if rank() != 0:
            self._unsaid.append((key, warning))
            return
        _warn(warning, stacklevel=4)

    @property
    def unsaid(self) -> int:
        """How many things this rank has to say that rank 0 has not been told."""
        return len(self._unsaid)

    def exchange(self) -> None:
        """Let rank 0 say what only others have to say; every rank calls this, and waits for the others."""
        everyone, self._unsaid = everyones(self._unsaid), []
        if rank() != 0:
            return
        unsaid: dict[_Key, tuple[list[int], str]] = {}
        for index, theirs in enumerate(everyone):
            for key, warning in theirs:
                if key not in self._said:
                    unsaid.setdefault(key, ([], warning))[0].append(index)
        for key, (ranks, warning) in unsaid.items():
            self._said.add(key)
            _warn(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: {warning}", stacklevel=4)

    def say_the_rest(self) -> None:
        """Say what rank 0 will not be told any more: the run has ended, and not in good order."""
        unsaid, self._unsaid = self._unsaid, []
        for _, warning in unsaid:
            _warn(f"rank {rank()}: {warning}", stacklevel=4)

    def report(self, what: str, error: Exception, when: str = "") -> None:
        """Warn of an error, or raise it if strict, or if it is an argument's before training began."""
        if self.strict or (isinstance(error, ArgumentError) and not self.late):
            raise error
        if rank() != 0 and is_known_to_rank_zero(error):
            let_go(error)
            return
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


def _warn(warning: str, stacklevel: int) -> None:
    message = f"GeometryMonitor: {warning}"
    try:
        warnings.warn(message, stacklevel=stacklevel)
    except Warning:
        # Python was told to raise warnings: one raised from here would stop training for a mere note
        _log.warning(message)
