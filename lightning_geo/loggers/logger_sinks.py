"""The sinks of one monitor: opened at the first sample, each failing on its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from lightning_geo.loggers import RecordSink, Sink, open_sinks
from lightning_geo.loggers.pictures import PictureSchedule
from lightning_geo.loggers.scalars import place_of
from lightning_geo.loggers.tags import Level
from lightning_geo.storage.events import Dropped
from lightning_geo.storage.places import Place, named, place
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["LoggerSinks"]


class _LoggingRun(Protocol):
    """What sinks need to know of a run; see ``Host`` in :mod:`lightning_geo.monitor.host`."""

    @property
    def loggers(self) -> Iterable[Any]:
        """The run's loggers."""

    @property
    def root_dir(self) -> str:
        """The directory of a record that no logger has a place for is made in it."""

    @property
    def fast_dev_run(self) -> bool:
        """Whether the run is a trial that writes nothing."""

    @property
    def estimated_steps(self) -> float | None:
        """Length of the run in optimizer steps; -1 or ``None`` if unknown."""


class LoggerSinks:
    """The sinks that take one monitor's records during one fit.

    Args:
        name: The monitor's name.
        level: Finest scalars.
        warn_once: Turns failures into warnings.
        taken: Directories of other runs' records.
        config: See :func:`~lightning_geo.loggers.open_sinks`.
    """

    def __init__(
        self,
        name: str,
        level: Level,
        warn_once: WarnOnce,
        taken: frozenset[str] = frozenset(),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._name = name
        self._level = level
        self._warn_once = warn_once
        self._sinks: list[Sink] | None = None
        self._taken = taken
        #: of all sinks; None before they are open
        self._schedule: PictureSchedule | None = None
        #: where the record is, once it was opened
        self.holds: frozenset[str] = frozenset()
        #: name of the record's directory, if no logger has a place for the record
        self.version: str | None = None

    def copied(self, loggers: Iterable[Any]) -> LoggerSinks:
        """Those of a copy of the monitor: another run, whose record goes elsewhere.

        Args:
            loggers: Of the run, whose directories belong to it before there is a record in them.
        """
        folders = [folder for logger in loggers if (folder := place_of(logger, "log_dir")) is not None]
        taken = self._taken | self.holds | {str(named(place(folder))) for folder in folders}
        return LoggerSinks(self._name, self._level, self._warn_once, taken, self._config)

    def anew(self) -> LoggerSinks:
        """Those of the next run of the same monitor."""
        return LoggerSinks(self._name, self._level, self._warn_once, self._taken, self._config)

    @property
    def places(self) -> str:
        """Where a person looks at the numbers, besides the record's directory; empty for nowhere."""
        return "; ".join(sink.where for sink in self._sinks or [] if not isinstance(sink, RecordFile))

    @property
    def directory(self) -> str:
        """Where the run's record is; empty for nowhere."""
        records = (sink.holds for sink in self._sinks or [] if isinstance(sink, RecordSink))
        return next((folder for folder in records if folder is not None), "")

    def open(
        self,
        run: _LoggingRun,
        resumed_at: int | None,
        version: str | None = None,
        picture_scales: dict[str, list[float]] | None = None,
    ) -> None:
        """Open the sinks of the run's loggers, unless they are open.

        Args:
            run: The run.
            resumed_at: Step at which this session takes over from an earlier one.
            version: Name of the run's existing directory for its record; ``None`` for a new one.
            picture_scales: See :func:`~lightning_geo.loggers.open_sinks`.
        """
        if self._sinks is not None:
            return
        self._sinks, max_steps = [], None
        if run.fast_dev_run:
            return
        with self._warn_once.about("the length of the run is not known"):
            max_steps = run.estimated_steps

        def directory() -> Place:
            root = place(run.root_dir) / "lightning_geo"
            self.version = version or _new_version(root)
            return root / self.version

        with self._warn_once.about("the loggers could not be opened"):
            self._schedule = PictureSchedule(max_steps)
            self._sinks = open_sinks(
                run.loggers, name=self._name, level=self._level, resumed_at=resumed_at,
                schedule=self._schedule, directory=directory, taken=self._taken, about=self._warn_once.about,
                picture_scales=picture_scales, config=self._config,
            )  # fmt: skip
        records = (sink.holds for sink in self._sinks if isinstance(sink, RecordSink))
        self.holds |= {str(named(place(folder))) for folder in records if folder is not None}

    def keeps_pictures(self, step: int, *, final: bool) -> bool:
        """Whether the sample at a step gets pictures; the first one of a session does."""
        return self._schedule is None or self._schedule.is_due(step, final=final)

    def write(self, record: GeometryRecord, *, final: bool) -> None:
        """Write a record to all sinks."""
        for sink in self._sinks or []:
            with self._warn_once.about(f"writing to {sink.where} failed"):
                sink.write(record, final=final)
        if self._schedule is not None:  # for the record too, where no logger draws pictures
            self._schedule.due(record.step, final=final)

    def note(self, dropped: Dropped, step: int) -> None:
        """Note a dropped sample in the record of a run that has none yet."""
        for sink in self._sinks or []:
            if isinstance(sink, RecordSink):
                with self._warn_once.about(f"writing to {sink.where} failed"):
                    sink.note(dropped, step)

    def close(self) -> None:
        """Close the sinks; the next fit opens new ones."""
        for sink in self._sinks or []:
            with self._warn_once.about(f"closing {sink.where} failed"):
                sink.close()
        self._sinks = self._schedule = None


def _new_version(root: Place) -> str:
    """Make the directory of a new run beside those of other runs, and return its name.

    Raises:
        OSError: If it cannot be made.
    """
    for number in itertools.count():
        name = f"version_{number}"
        if (root / name).exists():
            continue
        try:
            (root / name).mkdir(parents=True)
        except FileExistsError:  # another run took the name meanwhile, or the root is a file
            if not (root / name).exists():
                raise
            continue
        return name
    raise AssertionError
