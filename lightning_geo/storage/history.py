"""Runs read back: the records in a run's event files as arrays over samples."""

from __future__ import annotations

import glob
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.spec import GeometryRecord, lookup
from lightning_geo.storage.places import Place, place

if TYPE_CHECKING:
    import pandas as pd
    import xarray

__all__ = ["EVENT_FILES", "GeometryHistory", "event_files", "load_history", "read_history"]

_FACTS = ("epoch", "batches_seen", "wall_time", "cost_seconds", "probe")

#: Names of event files, as TensorBoard knows them.
EVENT_FILES = "*tfevents*"


class GeometryHistory:
    """The samples of one monitor in one run, by step.

    Args:
        records: At least one, by ascending step.
        name: The monitor's name.
        path: Where the run was read from.

    Attributes:
        steps: [sample] optimizer steps.
        stacks: ``stack -> stored name -> [sample, ...]``, NaN where a sample lacks the metric.
        facts: ``epoch``, ``batches_seen``, ``wall_time``, ``cost_seconds``, ``probe`` and ``coverage`` (the
            share of attention calls that were measured; ``record(i).coverage`` says what was left out), each
            [sample].
        structure: Model class, modules and heads of each layer, as of the last sample.

    Example:
        >>> records = [GeometryRecord({"encoder": {"entropy": np.ones((2, 4))}}, step=s) for s in (0, 50)]
        >>> history = GeometryHistory(records)
        >>> history.steps, history["entropy"].shape, history.keys()
        (array([ 0, 50]), (2, 2, 4), ['entropy'])
    """

    def __init__(self, records: list[GeometryRecord], name: str = "geometry", path: str = "") -> None:
        if not records:
            raise ValueError("Expected `records` to hold at least one sample, but got none.")
        self.name = name
        self.path = path
        self.steps: NDArray[np.int64] = np.array([record.step for record in records], np.int64)
        self.facts = {fact: np.array([getattr(record, fact) for record in records]) for fact in _FACTS}
        self.facts["coverage"] = np.array([record.coverage_share for record in records])
        self.structure = records[-1].structure
        self.stacks: dict[str, dict[str, NDArray[Any]]] = {}
        # a dict keeps the order in which records list their metrics
        names = {(s, m): None for record in records for s, arrays in record.stacks.items() for m in arrays}
        for stack, metric in names:
            arrays = [record.stacks.get(stack, {}).get(metric) for record in records]
            self.stacks.setdefault(stack, {})[metric] = _stacked(arrays)
        self._records = records

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, key: str) -> NDArray[Any]:
        """Return [sample, layer, head] of a metric; roles and stages of a bare name are on a last axis.

        A bare name means the main stack where the others are its parts (``encoder.part2``).
        """
        return lookup(self.stacks, key)

    def __contains__(self, key: str) -> bool:
        return key in GeometryRecord(self.stacks)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __repr__(self) -> str:
        steps = f"steps {self.steps[0]} to {self.steps[-1]}"
        return f"GeometryHistory({self.name!r}, {len(self)} samples, {steps}, {len(self.keys())} metrics)"

    def keys(self) -> list[str]:
        """Names that ``history[name]`` takes, one per stored metric."""
        return GeometryRecord(self.stacks).keys()

    def record(self, sample: int) -> GeometryRecord:
        """Return one sample by its index, -1 for the last."""
        return self._records[sample]

    def matrices(self, key: str) -> dict[int, NDArray[Any]]:
        """Return a basis or head-pair matrix by step; it is kept at a session's first and last sample only.

        Raises:
            KeyError: If no sample has it, or several stacks have it.
        """
        having = [record for record in self._records if record.matrices]
        if not having:
            raise KeyError(f"No matrix {key!r}: no sample of this run kept any.")
        return {record.step: lookup(record.matrices, key) for record in having}

    def to_xarray(self, stack: str | None = None) -> xarray.Dataset:
        """Return the metrics as an ``xarray.Dataset`` over ``step``, ``layer`` and ``head``.

        Units, formulas and meanings are attributes; epoch, time and the like are coordinates along ``step``.

        Args:
            stack: Which stack of layers; needed if the model has several, whose layers are not the same.

        Raises:
            ModuleNotFoundError: Without xarray: ``pip install 'lightning-geo[analysis]'``.
            ValueError: If ``stack`` is none of the model's, or missing where it has several.
        """
        from lightning_geo.storage.tables import to_xarray

        return to_xarray(self, stack)

    def to_pandas(self) -> pd.DataFrame:
        """Return a ``pandas.DataFrame`` with a row for every number.

        Its columns are step, stack, metric, layer, head, value and unit; ``head`` is missing for a metric of
        layers, and what has no value has no row.

        Raises:
            ModuleNotFoundError: Without pandas: ``pip install 'lightning-geo[analysis]'``.
        """
        from lightning_geo.storage.tables import to_pandas

        return to_pandas(self)


def _stacked(arrays: list[NDArray[Any] | None]) -> NDArray[Any]:
    """[sample, ...] of arrays that may be missing or differ in size; NaN where there is nothing."""
    given = [array for array in arrays if array is not None]
    if len({array.ndim for array in given}) > 1:
        raise ValueError(f"Expected a metric to have the same axes in all samples, but got {_shapes(given)}.")
    shape = tuple(np.max([array.shape for array in given], axis=0))
    if math.prod(shape) > 8 * max(array.size for array in given) + 1024:
        raise ValueError(
            f"Expected the samples to be of one model, but got arrays of shape {_shapes(given)}."
        )
    result = np.full((len(arrays), *shape), np.nan, given[0].dtype)
    for sample, array in zip(result, arrays, strict=True):
        if array is not None:
            sample[tuple(slice(size) for size in array.shape)] = array
    return result


def _shapes(arrays: list[NDArray[Any]]) -> str:
    return " and ".join(sorted({str(list(array.shape)) for array in arrays})[:4])


def load_history(path: str | os.PathLike[str], name: str | None = None) -> GeometryHistory:
    """Read a run back from its event files.

    Where a run was resumed, what it replaced is left out: samples at or after a session's start, or after a
    later-written sample of the same or a lower step. Damaged events are skipped with a warning.

    Args:
        path: Directory of a run, or its URL for fsspec: TensorBoard's (``lightning_logs/version_0``), W&B's
            (``wandb/offline-run-…``, together with the runs that it resumed), any other that holds
            the record; or one event file.
        name: Name of the monitor; needed if the run had several.

    Raises:
        FileNotFoundError: If there is no event file.
        ValueError: If none holds the geometry, or several monitors did and ``name`` does not say which.
    """
    return read_history(path, name, lambda record: record, stacklevel=3)


def read_history(
    path: str | os.PathLike[str],
    name: str | None,
    keep: Callable[[GeometryRecord], GeometryRecord],
    stacklevel: int = 2,
) -> GeometryHistory:
    """Read a run as :func:`load_history` does, but keep a part of each record alone.

    Args:
        path: See there.
        name: See there.
        keep: The part, with the record's step.
        stacklevel: Of the warning about damage.
    """
    from lightning_geo.storage.events import parse_dropped, parse_record, started_at

    files, skipped = event_files(place(path))
    monitors: dict[str, list[GeometryRecord]] = {}
    dropped: dict[str, str] = {}
    others: set[str] = set()
    for file in files:
        for event in _events(file):
            if isinstance(event, str):
                skipped.append(event)
                continue
            if (start := started_at(event)) is not None:
                step, of = start
                for monitor, records in monitors.items():
                    if of in (None, monitor):
                        _drop(records, step)
                continue
            try:
                found = parse_record(event)
                if (none := parse_dropped(event)) is not None:
                    dropped[none.monitor] = str(none)
                    continue
            except ValueError as error:
                skipped.append(f"{file}: skipped a sample ({error})")
                continue
            if found:
                records = monitors.setdefault(found[0], [])
                _drop(records, found[1].step)
                records.append(keep(found[1]))
            elif len(others) < 10:
                others.update(value.tag for value in event.summary.value)
    if skipped:
        shown = "; ".join(skipped[:5]) + (f"; and {len(skipped) - 5} more" if len(skipped) > 5 else "")
        warnings.warn(
            f"{os.fspath(path)!r} was read but for what is damaged. {shown}.", stacklevel=stacklevel
        )
    samples = [monitor for monitor, records in monitors.items() if records]
    lost = [said for monitor, said in dropped.items() if name in (None, monitor) and monitor not in samples]
    if lost and (name is not None or not samples):
        raise ValueError(f"No sample in {os.fspath(path)!r}. {' '.join(lost)}")
    name = _monitor(path, name, monitors, files, others, skipped)
    return GeometryHistory(monitors[name], name, os.fspath(path))


def _events(file: Place) -> Iterator[Any]:
    """The events of a file; in place of one that cannot be read, a string that says so."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    from lightning_geo.storage.tfrecord import Damage, read_frames

    for data in read_frames(file):
        if isinstance(data, Damage):
            yield str(data)
            continue
        try:
            yield Event.FromString(data)
        except DecodeError:
            yield f"{file}: skipped {len(data)} bytes that are no TensorBoard event"


def _drop(records: list[GeometryRecord], step: int) -> None:
    while records and records[-1].step >= step:
        records.pop()


def _monitor(
    path: str | os.PathLike[str],
    name: str | None,
    monitors: dict[str, list[GeometryRecord]],
    files: list[Place],
    others: set[str],
    skipped: list[str],
) -> str:
    names = [found for found, records in monitors.items() if records]
    if not names:
        held = f"only tags such as {', '.join(sorted(others)[:10])}" if others else "no readable summary"
        damage = f" {skipped[0]}." if skipped else ""
        raise ValueError(
            f"Expected `path` to be a run with a GeometryMonitor, but its {len(files)} event file(s) in "
            f"{os.fspath(path)!r} hold {held}.{damage} Was the monitor among the Trainer's callbacks?"
        )
    if name is None and len(names) > 1:
        raise ValueError(f"Expected `name` to be one of the run's monitors {names}, but got None.")
    if name is not None and name not in names:
        raise ValueError(f"Expected `name` to be one of the run's monitors {names}, but got {name!r}.")
    return names[0] if name is None else name


def event_files(path: Place) -> tuple[list[Place], list[str]]:
    """Return the event files of a run in the order in which they were begun, and what was passed over.

    Args:
        path: What :func:`load_history` takes. It may be a link, since somebody named it; a link in it that
            leads out of it is passed over.

    Raises:
        FileNotFoundError: If there is none.
    """
    if path.is_file():
        return [path], []
    if not path.exists():
        raise FileNotFoundError(f"Expected `path` to be a run's directory, but {str(path)!r} does not exist.")
    folders = _folders(path)
    inside = path.resolve() if folders == [path] else folders[0].resolve().parent.parent
    found = [file for folder in folders for file in folder.glob(EVENT_FILES) if file.is_file()]
    files = [file for file in found if file.resolve().is_relative_to(inside)]
    skipped = [
        f"{file}: skipped, it is a link out of the run's directory"
        for file in found
        if not file.resolve().is_relative_to(inside)
    ]
    if found:
        return sorted(files, key=_begun), skipped
    deeper = (path.glob(f"{folders}/{EVENT_FILES}") for folders in ("*", "*/*", "*/*/*"))
    below = sorted({str(file.parent) for found in deeper for file in found})
    if below:
        shown = ", ".join(below[:10]) + (", …" if len(below) > 10 else "")
        raise FileNotFoundError(
            f"Expected `path` to be the directory of one run, but {str(path)!r} has no event file itself. "
            f"These have some: {shown}."
        )
    content = sorted(entry.name for entry in path.iterdir())[:10]
    raise FileNotFoundError(
        f"Expected `path` to be the directory of a run, with a file named *tfevents*, but {str(path)!r} "
        + (f"holds {', '.join(content)}." if content else "is empty.")
    )


def _folders(path: Place) -> list[Place]:
    """Directories that hold a run's event files: W&B begins a new one each time that it resumes a run."""
    run = path.resolve()  # `latest-run` is a link
    run = run.parent if run.name == "files" else run
    logs = [file.name for file in run.glob("run-*.wandb")]
    if not logs:
        return [path]
    sessions = [log.parent / "files" for log in run.parent.glob(f"*run-*/{glob.escape(logs[0])}")]
    return sessions or [run / "files"]  # somebody renamed the directory


def _begun(file: Place) -> tuple[int, float, str]:
    second = re.search(r"tfevents\.(\d+)", file.name)
    first = next(_events(file), "")
    return int(second[1]) if second else 0, 0.0 if isinstance(first, str) else first.wall_time, file.name
