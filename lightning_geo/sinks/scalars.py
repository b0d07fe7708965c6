"""Scalars of records to any Lightning logger."""

from __future__ import annotations

from typing import Any

from lightning_geo.schema import GeometryRecord
from lightning_geo.sinks.tags import Level, scalars

__all__ = ["ScalarSink"]


class ScalarSink:
    """One call of the logger's ``log_metrics`` per sample.

    Args:
        logger: A Lightning logger.
        name: The monitor's name.
        level: Finest scalars.
    """

    def __init__(self, logger: Any, name: str, level: Level) -> None:
        self._logger = logger
        self._name = name
        self._level = level
        place = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
        self.where = f"{type(logger).__name__}: {place}" if isinstance(place, str) else type(logger).__name__

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Log one sample."""
        self._logger.log_metrics(scalars(record, self._name, self._level), step=record.step)

    def close(self) -> None:
        """Leave the logger open."""
