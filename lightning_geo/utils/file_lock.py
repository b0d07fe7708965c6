"""A lock on an open file that other processes and threads wait for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import IOBase

__all__ = ["locked"]


@contextmanager
def locked(file: IOBase) -> Iterator[None]:
    """Hold the lock of a file, and wait until nobody else does.

    It is held against others who ask for it, not against those who write without. The system releases it when
    a process ends, however it ends.

    Args:
        file: An open one.

    Raises:
        OSError: If the file system knows no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        # beyond the end: on Windows a lock forbids others to read what it covers
        file.seek(2**62)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            file.seek(2**62)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
