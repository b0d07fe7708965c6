"""Writes the scalars of records to any Lightning logger."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from lightning_geo.loggers.tags import Level, scalars
from lightning_geo.storage.record import GeometryRecord

__all__ = ["ScalarSink", "place_of"]


class ScalarSink:
    """One call of the logger's ``log_metrics`` per sample.

    Args:
        logger: A Lightning logger.
        name: The monitor's name.
        level: Finest scalars.
        measured: Stored names that the run measures; ``None`` where that is not known.
    """

    def __init__(self, logger: Any, name: str, level: Level, measured: Collection[str] | None = None) -> None:
        self._measured = measured
        self._logger = logger
        self._name = name
        self._level = level
        place = place_of(logger, "log_dir") or place_of(logger, "save_dir")
        self.where = type(logger).__name__ if place is None else f"{type(logger).__name__}: {place}"

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Log one sample."""
        numbers = scalars(record, self._name, self._level, self._measured)
        self._logger.log_metrics(numbers, step=record.step)

    def close(self) -> None:
        """Leave the logger open."""


def place_of(logger: Any, name: str) -> str | None:
    """Return a directory of a logger, or None if it has none or cannot name it."""
    try:
        place = getattr(logger, name, None)
    except Exception:  # a server that is down cannot name its directory; its metrics may still arrive
        return None
    return os.fspath(place) if isinstance(place, (str, os.PathLike)) else None
