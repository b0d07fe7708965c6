"""The destinations of records: one sink each, independent of each other.

Loggers are told apart by the methods of their ``experiment``: ``pytorch_lightning`` and ``lightning.pytorch``
have different classes for the same logger, and importing either here would load it for users of the other.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from lightning_geo.loggers.picture_scale import PictureScales
from lightning_geo.loggers.pictures import PictureSchedule
from lightning_geo.loggers.scalars import ScalarSink, place_of
from lightning_geo.loggers.tags import Level
from lightning_geo.loggers.wandb import WandbSink
from lightning_geo.storage.events import Dropped
from lightning_geo.storage.places import named, place
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from lightning_geo.utils._tensorboard import file_writer, is_summary_writer

__all__ = ["RecordSink", "Sink", "open_sinks"]

_About = Callable[[str], AbstractContextManager[None]]


class Sink(Protocol):
    """A destination of records. Its failures are raised; the caller decides what they cost."""

    where: str
    """The place where a person finds the records."""

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Write one sample; ``final`` marks the last one of the run."""

    def close(self) -> None:
        """Close what the sink itself opened."""


@runtime_checkable
class RecordSink(Sink, Protocol):
    """A sink that can hold the run's full record."""

    holds: str | None
    """Directory of the record, where this sink writes it."""

    def note(self, dropped: Dropped, step: int) -> None:
        """Note a dropped sample in a run that has none yet."""


def open_sinks(
    loggers: Iterable[Any],
    *,
    name: str = "geometry",
    level: Level = "model",
    directory: Callable[[], str | os.PathLike[str]] | None = None,
    schedule: PictureSchedule | None = None,
    resumed_at: int | None = None,
    taken: Collection[str] = (),
    picture_scales: dict[str, list[float]] | None = None,
    config: Mapping[str, Any] | None = None,
    about: _About = lambda what: contextlib.nullcontext(),
) -> list[Sink]:
    """Return the sinks of a run: one per logger, and one for the record where no logger holds it.

    The record goes to one event file per run: that of the first TensorBoard writer, else one among the files
    of the first W&B run, which uploads it, else one in the first logger's ``log_dir``, else one in
    ``directory``. Nothing is written before the first sample.

    Args:
        loggers: Lightning loggers.
        name: The monitor's name.
        level: Finest scalars, ``"model"``, ``"layer"`` or ``"head"``.
        directory: Makes a directory for the record if no logger has one; ``None`` for no record then.
        schedule: Which samples get pictures; ``None`` for that of a run of unknown length.
        resumed_at: Step of the checkpoint that the run resumed from; ``None`` for a fresh run.
        taken: Directories that hold the record of another run: loggers that write there
            get the numbers as well, but no record.
        picture_scales: Ends of the scales of the run's pictures by tag, as an earlier session left them;
            those of this session go there too, for all loggers.
        config: What a run's config says of the monitor, where a logger keeps one. Its ``metrics`` are the
            stored names that the run measures; without them the loggers get the key metrics alone.
        about: Context in which each destination is opened, so that one that fails does not affect the others.
    """
    scales = PictureScales(picture_scales)
    offers = _LoggerOffers(name, level, schedule or PictureSchedule(), resumed_at, taken, scales, config)
    for logger in loggers:
        with about(f"the logger {type(logger).__name__} could not be opened"):
            offers.add(logger)
    for sink in offers.sinks if offers.wandb_folder is not None else ():
        if isinstance(sink, WandbSink):  # a disabled run has no folder, and so no place for a report
            sink.record_at = offers.record_at or offers.wandb_folder
    if not offers.recorded:
        with about("the record could not be opened"):
            record = offers.record
            if record is None and (offers.places or directory is not None):
                where = offers.places[0] if offers.places else directory()  # type: ignore[misc]
                record = functools.partial(RecordFile, where, name, resumed_at=resumed_at)
            if record is not None:
                offers.sinks.append(record())
    return offers.sinks


class _LoggerOffers:
    """Sinks and places for the record that a run's loggers have offered so far."""

    def __init__(
        self,
        name: str,
        level: Level,
        schedule: PictureSchedule,
        resumed_at: int | None,
        taken: Collection[str],
        scales: PictureScales,
        config: Mapping[str, Any] | None,
    ) -> None:
        self._config = config
        self._measured: Collection[str] | None = (config or {}).get("metrics")
        self._scales = scales
        self._name, self._level = name, level
        self._schedule, self._resumed_at, self._taken = schedule, resumed_at, taken
        self.sinks: list[Sink] = []
        #: whether a TensorBoard writer holds the record, and where
        self.recorded = False
        self.record_at: str | os.PathLike[str] | None = None
        self.record: Callable[[], RecordFile] | None = None
        self.wandb_folder: str | None = None
        self.places: list[str] = []

    def add(self, logger: Any) -> None:
        """Open a logger's sink; if that fails, nothing of the logger is kept."""
        experiment, name, schedule = _experiment(logger), self._name, self._schedule
        if is_summary_writer(experiment):
            from lightning_geo.loggers.tensorboard import TensorBoardSink  # needs tensorboard to be installed

            folder = file_writer(experiment).get_logdir()
            free = not _is_taken(folder, self._taken)
            # the mark of a resumed session would void the other run's samples
            resumed_at = self._resumed_at if free else None
            first = free and not self.recorded
            options: dict[str, Any] = {"scales": self._scales, "measured": self._measured}
            self.sinks.append(
                TensorBoardSink(experiment, name, self._level, schedule, first, resumed_at, **options)
            )
            if free:
                self.record_at, self.recorded = self.record_at or folder, True
        elif _can(experiment, "log", "define_metric", "save"):
            resumed = self._resumed_at is not None
            options = {"scales": self._scales, "measured": self._measured, "config": self._config}
            self.sinks.append(WandbSink(experiment, name, self._level, schedule, resumed=resumed, **options))
            disabled = experiment.disabled  # such a run has a temporary directory
            if self.record is None and not disabled and not _is_taken(experiment.dir, self._taken):
                folder = self.wandb_folder = os.path.abspath(experiment.dir)
                upload = functools.partial(experiment.save, base_path=folder, policy="end")
                options = {"resumed_at": self._resumed_at, "on_open": upload}
                self.record = functools.partial(RecordFile, folder, name, **options)
        else:
            self.sinks.append(ScalarSink(logger, name, self._level, self._measured))
            where = place_of(logger, "log_dir")
            self.places += [where] if where is not None and not _is_taken(where, self._taken) else []


def _is_taken(directory: str | os.PathLike[str], taken: Collection[str]) -> bool:
    """Whether a directory is among others, however it is written."""
    return str(named(place(directory))) in taken


def _experiment(logger: Any) -> Any:
    try:
        return getattr(logger, "experiment", None)
    except Exception:  # the logger's own `log_metrics` raises it again at the first sample, with a warning
        return None


def _can(experiment: Any, *methods: str) -> bool:
    # the class, not the object: Lightning's dummy experiment answers to every attribute
    return all(callable(getattr(type(experiment), method, None)) for method in methods)
