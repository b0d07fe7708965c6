"""Finds what changed in a ledger since its audits, and in the records that they were about."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_geo.analysis.audit.ledger import FIRST, parse_line
from lightning_geo.analysis.audit.record_hash import record_hash
from lightning_geo.storage.history import GeometryHistory, load_history
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.file_lock import locked

__all__ = ["Verification", "verify"]


class Verification(NamedTuple):
    """The result of :func:`verify`.

    Args:
        lines: How many lines the ledger has.
        head: Hash of its last line; empty if that is damaged.
        problems: Changes since the audits, and entries that cannot be checked, one sentence each.
        notes: Further remarks for a reader.
        records: How many records were read again and hold what was audited.
    """

    lines: int
    head: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    records: int


def verify(
    path: str | os.PathLike[str], expected: str | None = None, *, records: bool = True
) -> Verification:
    """Check every line of a ledger, and every record that it names.

    The chain shows any line that was changed, removed, inserted or moved by someone who did not write all
    later lines anew. Whoever can write the file can do that, or cut off its end: only a hash that was kept
    elsewhere shows it.

    Args:
        path: The ledger.
        expected: Hash of a line that the ledger must hold, as an audit printed it.
        records: Whether to read the records again.

    Raises:
        RunError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file, contextlib.ExitStack() as stack:
            # an audit that is writing its line has torn nothing; where no lock is to be had, none is held
            with contextlib.suppress(OSError):
                stack.enter_context(locked(file))
            file.seek(0)
            content = file.read()
    except OSError as error:
        raise RunError(f"Cannot read the ledger {os.fspath(path)!r}: {error.strerror}.") from error
    *lines, torn = content.split(b"\n")
    entries: list[dict[str, Any] | None] = []
    problems = [] if content else ["The ledger is empty."]
    for number, line in enumerate(lines, 1):
        try:
            entries.append(parse_line(line))
        except ValueError as error:
            entries.append(None)
            problems.append(f"Line {number} was changed: {error}.")
    if torn:
        problems.append(
            f"Line {len(lines) + 1} is torn: it has no end. An audit was interrupted while it was writing, "
            "or the end of the file was cut off."
        )
    problems += _breaks(entries)
    hashes = [entry["hash"] if entry else "" for entry in entries]
    notes = []
    if expected is not None:
        problem, note = _expectation(expected, hashes)
        problems += [problem] * bool(problem)
        notes += [note] * bool(note)
    intact = 0
    if records:
        for problem, note, good in _records(entries):
            problems += [problem] * bool(problem)
            notes += [note] * bool(note)
            intact += good
    return Verification(
        len(lines) + bool(torn),
        hashes[-1] if hashes and not torn else "",
        tuple(problems),
        tuple(notes),
        intact,
    )


def _expectation(expected: str, hashes: list[str]) -> tuple[str, str]:
    """A problem, or a note, on a hash that the ledger must hold."""
    if not expected or expected.lower() not in hashes:
        return (
            f"No line has the expected hash {expected}: lines were removed from the end, or written anew.",
            "",
        )
    number = hashes.index(expected.lower()) + 1
    later = len(hashes) - number
    return "", f"The expected hash is that of line {number}; {later} were added since." if later else ""


def _breaks(entries: list[dict[str, Any] | None]) -> Iterator[str]:
    """Sentences on lines that do not follow the line before."""
    for number, entry in enumerate(entries, 1):
        if entry is None:
            continue
        before = entries[number - 2] if number > 1 else {"hash": FIRST}
        if before is not None and entry.get("previous") != before["hash"]:
            after = "the line before" if number > 1 else "the start of a ledger"
            yield (
                f"Line {number} does not follow {after}: lines were removed, inserted, reordered or written "
                "anew there."
            )
        elif entry.get("number") != number:
            yield f"Line {number} says that it is number {entry.get('number')}."


def _records(entries: list[dict[str, Any] | None]) -> Iterator[tuple[str, str, bool]]:
    """A problem or a note on each record as it was audited, and whether it still holds what was audited."""
    audited: dict[tuple[str, str, str, int], list[int]] = {}
    for number, entry in enumerate(entries, 1):
        for key in ("run", "release"):
            run = (entry or {}).get(key)
            if run is None:
                continue
            match run:
                case {"path": str(path), "monitor": str(name), "record": str(content), "samples": int(count)}:
                    audited.setdefault((path, name, content, count), []).append(number)
                case _:
                    yield f"Line {number} does not say which record it is about.", "", False
    read: dict[tuple[str, str], GeometryHistory | str] = {}
    for (path, monitor, expected, samples), numbers in audited.items():
        if (path, monitor) not in read:
            read[path, monitor] = _read(path, monitor)
        history, of = read[path, monitor], f"of line {numbers[-1]}"
        if isinstance(history, str):
            yield f"The record {of} cannot be checked: {history}", "", False
        elif record_hash(history) == expected:
            yield "", "", True
        elif len(history) > samples and record_hash(history, samples) == expected:
            more = len(history) - samples
            note = f"The run {path!r} went on after line {numbers[-1]}: {more} samples more, none changed."
            yield "", note, True
        else:
            yield f"The record {of} changed since its audit: {path!r}.", "", False


def _read(path: str, monitor: str) -> GeometryHistory | str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damage changes the hash, which is compared
        try:
            return load_history(path, monitor)
        except (OSError, ValueError, TypeError, MemoryError, ImportError) as error:
            return str(error) or type(error).__name__
