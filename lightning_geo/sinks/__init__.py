"""Where records go. One sink per destination; all take a record and none knows of the others.

Loggers are told apart by what their ``experiment`` is able to do, since ``pytorch_lightning`` and
``lightning.pytorch`` have different classes for the same logger and neither may be imported here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from lightning_geo.schema import GeometryRecord
from lightning_geo.sinks.events import Dropped
from lightning_geo.sinks.pictures import PictureSchedule
from lightning_geo.sinks.record_file import RecordFile
from lightning_geo.sinks.scalars import ScalarSink
from lightning_geo.sinks.tags import Level
from lightning_geo.sinks.wandb import WandbSink

__all__ = ["RecordSink", "Sink", "open_sinks"]


class Sink(Protocol):
    """A destination of records. What goes wrong in it is raised; the caller decides what that costs."""

    where: str
    """Where to look, for a person."""

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Take one sample; ``final`` says that it is the last one of the run."""

    def close(self) -> None:
        """Release what the sink itself opened."""


@runtime_checkable
class RecordSink(Sink, Protocol):
    """A sink that may hold the run's full record."""

    def note(self, dropped: Dropped, step: int) -> None:
        """Write that a sample was dropped, in a run that has none yet."""


def open_sinks(
    loggers: Iterable[Any],
    *,
    name: str = "geometry",
    level: Level = "layer",
    directory: str | os.PathLike[str] | None = None,
    max_steps: float | None = None,
    resumed_at: int | None = None,
) -> list[Sink]:
    """Return the sinks of a run: one per logger, and one for the record where no logger holds it.

    The record is an event file, one per run: the first TensorBoard writer's, else one among the files of the
    first W&B run, which uploads it, else one in the first logger's ``log_dir``, else in ``directory``.
    Nothing is written before the first sample.

    Args:
        loggers: Lightning loggers.
        name: The monitor's name.
        level: Finest scalars, ``"model"``, ``"layer"`` or ``"head"``.
        directory: Where the record goes if no logger has a place for it; ``None`` for nowhere.
        max_steps: Length of the run in optimizer steps, -1 or ``None`` if it is not known.
        resumed_at: Step of the checkpoint that the run resumed from; ``None`` for a fresh run.
    """
    sinks: list[Sink] = []
    record: Callable[[], RecordFile] | None = None  # made only where no TensorBoard writer holds it
    recorded = False
    record_at: str | os.PathLike[str] | None = None
    wandb_folder: str | None = None
    places: list[str | os.PathLike[str]] = []
    for logger in loggers:
        experiment = _experiment(logger)
        schedule = PictureSchedule(max_steps)
        if _can(experiment, "_get_file_writer"):
            from lightning_geo.sinks.tensorboard import TensorBoardSink  # needs tensorboard to be installed

            sinks.append(TensorBoardSink(experiment, name, level, schedule, not recorded, resumed_at))
            record_at = record_at or experiment._get_file_writer().get_logdir()
            recorded = True
        elif _can(experiment, "log", "define_metric", "save"):
            sinks.append(WandbSink(experiment, name, level, schedule, resumed=resumed_at is not None))
            if record is None and not experiment.disabled:  # a disabled run has a temporary directory
                folder = wandb_folder = os.path.abspath(experiment.dir)
                upload = functools.partial(experiment.save, base_path=folder, policy="end")
                record = functools.partial(RecordFile, folder, name, resumed_at=resumed_at, on_open=upload)
        else:
            sinks.append(ScalarSink(logger, name, level))
            place = getattr(logger, "log_dir", None)
            places += [place] if isinstance(place, str) else []
    if wandb_folder is not None:  # a disabled run, which has none, has nowhere to put a report
        for sink in sinks:
            if isinstance(sink, WandbSink):
                sink.record_at = record_at or wandb_folder
    places += [directory] if directory is not None else []
    if record is None and places:
        record = functools.partial(RecordFile, places[0], name, resumed_at=resumed_at)
    return sinks if recorded or record is None else [*sinks, record()]


def _experiment(logger: Any) -> Any:
    try:
        return getattr(logger, "experiment", None)
    except Exception:  # whatever it is, the logger's own `log_metrics` raises it again at the first sample
        return None


def _can(experiment: Any, *methods: str) -> bool:
    # asked of the class: Lightning's stand-in for an experiment has every attribute that one asks it for
    return all(callable(getattr(type(experiment), method, None)) for method in methods)
