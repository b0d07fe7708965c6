"""The record in an event file of its own, for runs without a TensorBoard logger."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lightning_geo.schema import GeometryRecord
from lightning_geo.sinks.events import Dropped, dropped_event, file_version, record_event, session_events
from lightning_geo.sinks.frames import frame

__all__ = ["RecordFile"]

_serial = itertools.count()


class RecordFile:
    """One event file per session; each sample is on disk when ``write`` returns.

    Opened at the first sample, in a resumed run at once.

    Named ``events.out.tfevents.<time>.<host>.<pid>.<n>.lightning_geo``, as TensorBoard wants it.

    Args:
        directory: Where the file goes; made if it is not there.
        name: The monitor's name.
        resumed_at: Step at which this session takes over from an earlier one.
        on_open: Called with the file's path once something is in it.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        resumed_at: int | None = None,
        on_open: Callable[[Path], object] | None = None,
    ) -> None:
        # absolute: a relative directory would move with the working directory
        self._directory = Path(directory).absolute()
        self._name = name
        self._on_open = on_open
        self._file: BinaryIO | None = None
        self.where = f"record: {directory}"
        if resumed_at is not None:  # at once, as in the TensorBoard sink
            self._append(*session_events(resumed_at, name))

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Write one sample."""
        self._append(record_event(record, self._name))

    def note(self, dropped: Dropped, step: int) -> None:
        """Write that a sample was dropped, in a run that has none yet."""
        self._append(dropped_event(dropped, step))

    def _append(self, *events: Any) -> None:
        file, first = self._file, self._file is None
        if file is None:
            file = self._file = self._open()
            events = (file_version(), *events)
        file.write(b"".join(frame(event.SerializeToString()) for event in events))
        file.flush()
        if first and self._on_open is not None:
            self._on_open(Path(file.name))

    def _open(self) -> BinaryIO:
        self._directory.mkdir(parents=True, exist_ok=True)
        unique = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_serial)}"
        return (self._directory / f"events.out.tfevents.{unique}.lightning_geo").open("xb")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
