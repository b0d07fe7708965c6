"""Samples finished outside the training thread, as those of a device, on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

from lightning_geo.monitor import pending_sample
from lightning_geo.monitor.pending_sample import PendingSample

__all__ = ["WHEN", "finished"]

#: When records of samples are there: in the hook that takes them, in the next one, or when somebody asks.
WHEN = ("at once", "next", "asked for")


@contextlib.contextmanager
def finished(when: str) -> Iterator[None]:
    """While open, samples are finished at one of :data:`WHEN`; but for the first, in a thread."""
    if when == "at once":
        yield
        return
    original = PendingSample.is_due

    def is_due(self: PendingSample, step: int) -> bool:
        if self._work is None:
            return True
        if when == "next":  # not in the hook that takes it
            asked = getattr(self, "asked", False)
            self.asked = True  # type: ignore[attr-defined]
            if asked:
                self._work.wait()
            return asked and original(self, step)
        # several ranks do not look whether it is there
        return original(self, step) and not self._work.done

    with patch.object(pending_sample, "_outside", lambda device: True), patch.object(
        PendingSample, "is_due", is_due
    ):
        yield
