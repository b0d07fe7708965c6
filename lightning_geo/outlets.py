"""The monitor's sinks: opened at the first sample, one failing without the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_geo.complaints import Complaints
from lightning_geo.schema import GeometryRecord
from lightning_geo.sinks import RecordSink, Sink, open_sinks
from lightning_geo.sinks.events import Dropped
from lightning_geo.sinks.tags import Level

__all__ = ["Outlets"]


class Outlets:
    """Where one monitor's records go during one fit.

    Args:
        name: The monitor's name.
        level: Finest scalars.
        complaints: Where failures go.
    """

    def __init__(self, name: str, level: Level, complaints: Complaints) -> None:
        self._name = name
        self._level = level
        self._complaints = complaints
        self._sinks: list[Sink] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a pickle, has no file open."""
        return {**vars(self), "_sinks": None}

    @property
    def places(self) -> str:
        """Where to look, for a person."""
        return ", ".join(sink.where for sink in self._sinks or []) or "nowhere: no logger and fast_dev_run"

    def open(self, trainer: Any, resumed_at: int | None) -> None:
        """Open the sinks of the trainer's loggers, unless they are."""
        if self._sinks is not None:
            return
        with self._complaints.about("the loggers could not be opened"):
            self._sinks = [] if trainer.fast_dev_run else open_sinks(
                trainer.loggers, name=self._name, level=self._level, resumed_at=resumed_at,
                max_steps=trainer.estimated_stepping_batches,
                directory=Path(trainer.default_root_dir) / "lightning_geo",
            )  # fmt: skip

    def write(self, record: GeometryRecord, *, final: bool) -> None:
        """Send a record everywhere."""
        for sink in self._sinks or []:
            with self._complaints.about(f"writing to {sink.where} failed"):
                sink.write(record, final=final)

    def note(self, dropped: Dropped, step: int) -> None:
        """Leave in the run's record that the monitor was there, though it has no sample."""
        for sink in self._sinks or []:
            if isinstance(sink, RecordSink):
                with self._complaints.about(f"writing to {sink.where} failed"):
                    sink.note(dropped, step)

    def close(self) -> None:
        """Close what was opened; the next fit opens anew."""
        for sink in self._sinks or []:
            with self._complaints.about(f"closing {sink.where} failed"):
                sink.close()
        self._sinks = None
