"""Samples finished outside the training thread, as those of a device, on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

from lightning_geo.monitor import pending_sample
from lightning_geo.monitor.pending_sample import PendingSample
from lightning_geo.utils.ranks import world_size

__all__ = ["WHEN", "finished"]

#: When records of samples are made: in the hook that takes them, in the next one, or when somebody asks.
WHEN = ("at once", "next", "asked for")


@contextlib.contextmanager
def finished(when: str) -> Iterator[None]:
    """While open, records are made at one of :data:`WHEN`, or ``"as it comes"``.

    But for ``"at once"``, samples are finished in a thread.
    """
    due, asked = PendingSample.is_due, set[PendingSample]()

    def is_due(self: PendingSample, step: int) -> bool:
        if self._work is None or when == "as it comes":
            return due(self, step)
        if when == "asked for":
            return world_size() > 1 and due(self, step)
        if self not in asked:  # not in the hook that takes it
            asked.add(self)
            return False
        self._work.wait()
        asked.discard(self)
        return due(self, step)

    with contextlib.ExitStack() as stack:
        if when != "at once":
            stack.enter_context(patch.object(pending_sample, "_outside", lambda device: True))
            stack.enter_context(patch.object(PendingSample, "is_due", is_due))
        yield
