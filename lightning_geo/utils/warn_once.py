"""Errors as warnings, each given once with its cause; they never stop training, unless `strict` is set."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from lightning_geo.utils.errors import SettingError, let_go
from lightning_geo.utils.progress_bars import beside_bars
from lightning_geo.utils.ranks import everyones, is_known_to_rank_zero, rank

__all__ = ["WarnOnce", "prefix_of"]

_log = logging.getLogger(__name__)


#: ``what``, or what stands for it, and the kind of error.
_Key = tuple[str, type | None]


class WarnOnce:
    """Turns errors into warnings, one per kind, from rank 0 alone: the other ranks mostly have the same ones.

    The other ranks keep theirs until :meth:`exchange`, where rank 0 emits those that it has not emitted yet.

    Args:
        strict: Raise errors instead, on every rank.
        name: Of the monitor that warns.
    """

    def __init__(self, strict: bool, name: str = "geometry") -> None:
        self.strict = strict
        #: what every line of this monitor begins with
        self.prefix = prefix_of(name)
        #: whether training has begun: from then on a wrong argument costs the samples, not the run
        self.late = False
        self._emitted: set[_Key] = set()
        #: warnings of this rank, another one than 0, since the last exchange
        self._pending: list[tuple[_Key, str]] = []

    def warn(self, what: str, details: str = "", kind: type | None = None, once: str | None = None) -> None:
        """Warn, once for each ``what`` (or ``once``, where it is given) and kind of error."""
        key = (what if once is None else once, kind)
        if key in self._emitted:
            return
        self._emitted.add(key)
        warning = f"{what}{details and ': '}{details}"
        if rank() != 0:
            self._pending.append((key, warning))
            return
        self._emit(warning)

    @property
    def pending(self) -> int:
        """Number of warnings of this rank that rank 0 does not know yet."""
        return len(self._pending)

    def exchange(self) -> None:
        """Emit on rank 0 the warnings that only other ranks have; every rank calls this, and waits."""
        everyone, self._pending = everyones(self._pending), []
        if rank() != 0:
            return
        new: dict[_Key, tuple[list[int], str]] = {}
        for index, warnings_of_rank in enumerate(everyone):
            for key, warning in warnings_of_rank:
                if key not in self._emitted:
                    new.setdefault(key, ([], warning))[0].append(index)
        for key, (ranks, warning) in new.items():
            self._emitted.add(key)
            self._emit(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: {warning}")

    def warn_of_pending(self) -> None:
        """Emit this rank's pending warnings itself: the run ended without a last exchange."""
        pending, self._pending = self._pending, []
        for _, warning in pending:
            self._emit(f"rank {rank()}: {warning}")

    def report(self, what: str, error: Exception, when: str = "") -> None:
        """Warn of an error, or raise it if strict, or if it is an argument's before training began."""
        if self.strict or (isinstance(error, SettingError) and not self.late):
            raise error
        if rank() != 0 and is_known_to_rank_zero(error):
            let_go(error)
            return
        notes = ", ".join(note for note in (when, "training goes on", "warned once") if note)
        self.warn(what, f"{type(error).__name__}: {error} ({notes})", type(error))
        let_go(error)  # a frame that raises what it holds keeps itself, and its tensors, alive

    @contextlib.contextmanager
    def about(self, what: str, when: str = "") -> Iterator[None]:
        """Report whatever the context raises as a failure of ``what``."""
        try:
            yield
        except Exception as error:
            self.report(what, error, when)

    def _emit(self, warning: str) -> None:
        message = f"{self.prefix}{warning}"
        try:
            with beside_bars():
                warnings.warn(message, stacklevel=4)
        except Warning:
            # Python was told to raise warnings: one raised from here would stop training for a mere note
            _log.warning(message)


def prefix_of(name: str) -> str:
    """Return what every line of a monitor begins with; of two in a run, one has a name of its own.

    Example:
        >>> prefix_of("geometry"), prefix_of("batch")
        ('GeometryMonitor: ', 'GeometryMonitor (batch): ')
    """
    return "GeometryMonitor: " if name == "geometry" else f"GeometryMonitor ({name}): "
