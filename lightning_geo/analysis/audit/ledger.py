"""The ledger of audits: JSON lines, each with the hash of the line before.

A line is one JSON object with sorted keys and without spaces, in ASCII. Its ``hash`` is the SHA-256 of the
line as it would be without ``hash``; its ``previous`` is the ``hash`` of the line before, and 64 zeros in the
first line; its ``number`` counts from 1.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from io import FileIO
from typing import Any, NamedTuple

from lightning_geo.utils.errors import DamagedError, RunError
from lightning_geo.utils.file_lock import locked

__all__ = ["FIRST", "Receipt", "append", "line_of", "parse_line"]

#: ``previous`` of the first line.
FIRST = "0" * 64

_BLOCK = 1 << 16


class Receipt(NamedTuple):
    """Where an audit stands in a ledger.

    Args:
        path: The ledger.
        number: Number of its line, which is the number of audits so far.
        hash: Hash of the line; kept elsewhere, it shows later that nothing before it was changed or removed.
    """

    path: str
    number: int
    hash: str


def append(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> Receipt:
    """Append an audit to a ledger, which is created if it does not exist.

    Audits that append at the same time wait for each other. The line is on the disk when this returns; if it
    cannot be written whole, the ledger stays as it was.

    Args:
        path: The ledger.
        entry: What the line says: JSON-serialisable values, without ``number``, ``previous`` and ``hash``.

    Raises:
        RunError: If the file cannot be written, or its last line is torn or no line of a ledger.
    """
    where = os.fspath(path)
    if "://" in where:
        raise RunError(f"Expected the ledger to be a local file but got {where!r}.")
    try:
        with open(path, "a+b", buffering=0) as file, locked(file):
            number, previous = _last(file, where)
            line = line_of({**entry, "number": number + 1, "previous": previous})
            size = file.seek(0, os.SEEK_END)
            try:
                _write(file, line + b"\n")
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise RunError(f"Cannot write the ledger {where!r}: {error.strerror or error}.") from error
    return Receipt(where, number + 1, parse_line(line)["hash"])


def line_of(entry: Mapping[str, Any]) -> bytes:
    """Return the line of an entry, with its hash and without the end of line."""
    content = {key: value for key, value in entry.items() if key != "hash"}
    return _canonical({**content, "hash": hashlib.sha256(_canonical(content)).hexdigest()})


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the entry of a line.

    Raises:
        ValueError: If it is not exactly what :func:`line_of` made of an entry.

    Example:
        >>> parse_line(line_of({"result": "passed"}).replace(b"passed", b"waived"))
        Traceback (most recent call last):
        lightning_geo.utils.errors.DamagedError: its content does not give its hash
    """
    try:
        entry = json.loads(line)
        intact = isinstance(entry, dict) and line_of(entry) == line
    except (ValueError, RecursionError) as error:
        raise DamagedError("it is not JSON") from error
    if not intact:
        raise DamagedError("its content does not give its hash")
    return dict(entry)


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _write(file: FileIO, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]
    os.fsync(file.fileno())


def _last(file: FileIO, where: str) -> tuple[int, str]:
    """Number and hash of the last line."""
    line = _last_line(file)
    if not line:
        return 0, FIRST
    try:
        if not line.endswith(b"\n"):
            raise DamagedError("it is torn: an audit was interrupted while it was writing")
        entry = parse_line(line[:-1])
        number, own = entry.get("number"), entry["hash"]
        if not isinstance(number, int):
            raise DamagedError("it has no number")
    except ValueError as error:
        raise RunError(
            f"Cannot append to the ledger {where!r}. Its last line is damaged: {error}. Keep a copy, run "
            "`lightning-geo audit verify` on it, and remove the line or begin a new ledger."
        ) from error
    return number, own


def _last_line(file: FileIO) -> bytes:
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end and b"\n" not in tail[:-1]:
        start = max(end - _BLOCK, 0)
        file.seek(start)
        tail = file.read(end - start) + tail
        end = start
    return tail[tail[:-1].rfind(b"\n") + 1 :]
