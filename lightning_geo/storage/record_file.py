"""Writes the record to an event file of its own, for runs without a TensorBoard logger."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lightning_geo.storage.events import Dropped, dropped_event, file_version, record_event, session_event
from lightning_geo.storage.places import Place, Remote, place
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.tfrecord import frame

__all__ = ["RecordFile"]

_serial = itertools.count()


class RecordFile:
    """One event file per session; each sample is on disk when ``write`` returns.

    The file is opened at the first sample, in a resumed run at once. Its name,
    ``events.out.tfevents.<time>.<host>.<pid>.<n>.lightning_geo``, is one that TensorBoard recognises.

    Args:
        directory: Directory or URL for the file; made if missing.
        name: The monitor's name.
        resumed_at: Step at which this session takes over from an earlier one.
        on_open: Called with the file's path after the first write.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        resumed_at: int | None = None,
        on_open: Callable[[Place], object] | None = None,
    ) -> None:
        where = place(directory)
        # absolute: a relative directory would move with the working directory
        self._directory = where if isinstance(where, Remote) else where.absolute()
        self._name = name
        self._on_open = on_open
        self._file: _Writer | None = None
        self.where = f"record: {os.fspath(directory)}"
        self.holds: str | None = os.fspath(directory)
        if resumed_at is not None:  # voids the replaced samples before anything else is written
            self._append(session_event(resumed_at, name))

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
        file.append(b"".join(frame(event.SerializeToString()) for event in events))
        if first and self._on_open is not None:
            self._on_open(file.path)

    def _open(self) -> _Writer:
        if isinstance(self._directory, Remote):
            return _RemoteFile(self._directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        return _LocalFile(self._directory / _unique())

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _unique() -> str:
    serial = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_serial)}"
    return f"events.out.tfevents.{serial}.lightning_geo"


def _beginning() -> bytes:
    return frame(file_version().SerializeToString())


class _Writer(Protocol):
    """Appends to an event file."""

    path: Any

    def append(self, content: bytes) -> None: ...

    def close(self) -> None: ...


class _LocalFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb")
        self._file.write(_beginning())

    def append(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _RemoteFile:
    """Writes each time a whole file or a whole append: an object store shows no file that is still open.

    Some stores append, some refuse to, and some replace the content. The second write finds out which; if it
    fails, every later write goes to a file of its own, which readers and TensorBoard put in order.
    """

    def __init__(self, directory: Remote) -> None:
        self._directory = directory
        self._first = b""
        self._appends: bool | None = None
        self._begin()

    def _begin(self) -> None:
        self.path = self._directory / _unique()
        self._size = 0

    def append(self, content: bytes) -> None:
        if not self._size:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._first = _beginning() + content
            self.path.write_bytes(self._first)
            self._size = len(self._first)
        elif self._appends is None:
            self._try(content)
        elif self._appends:
            self._add(content)
        else:
            self._begin()
            self.append(content)

    def _try(self, content: bytes) -> None:
        try:
            self._add(content)
            self._appends = self.path.size() == self._size
        except Exception:
            self._appends = False
        if not self._appends:
            self.path.write_bytes(self._first)  # in case it was replaced
            self.append(content)
        self._first = b""

    def _add(self, content: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(content)
        self._size += len(content)

    def close(self) -> None:
        """Do nothing: no file is open."""
