"""Reads a run back: the records in its event files as arrays over samples."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.foreign_specs import differing_fields
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.event_files import event_files, read_events
from lightning_geo.storage.notebook_view import ShownHistory
from lightning_geo.storage.patterns import AttentionPatterns
from lightning_geo.storage.places import Place, place
from lightning_geo.storage.record import GeometryRecord, lookup
from lightning_geo.storage.stacking import stack_samples
from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.errors import ArgumentError, RunError, UnknownKeyError

if TYPE_CHECKING:
    import pandas as pd
    import xarray

__all__ = ["GeometryHistory", "load_history", "read_history"]

_METADATA = ("epoch", "batches_seen", "wall_time", "cost_seconds", "probe_fingerprint")


class GeometryHistory(ShownHistory):
    """The samples of one monitor in one run, by step. A notebook shows its verdict and its headline metrics.

    Args:
        records: At least one, by ascending step.
        name: The monitor's name.
        path: Where the run was read from.

    Attributes:
        steps: [sample] optimizer steps.
        stacks: ``stack -> stored name -> [sample, ...]``, NaN where a sample lacks the metric.
        metadata: ``epoch``, ``batches_seen``, ``wall_time``, ``cost_seconds``, ``probe_fingerprint`` and
            ``coverage`` (the share of attention calls that were measured; ``record(i).coverage`` says what
            was left out), each [sample].
        model: Model class, modules and heads of each layer, as of the last sample.
        specs: ``name -> MetricSpec`` of the metrics that are not built in, as their last sample has them.

    Example:
        >>> records = [GeometryRecord({"encoder": {"entropy": np.ones((2, 4))}}, step=s) for s in (0, 50)]
        >>> history = GeometryHistory(records)
        >>> history.steps, history["entropy"].shape, history.keys()
        (array([ 0, 50]), (2, 2, 4), ['entropy'])
    """

    def __init__(self, records: list[GeometryRecord], name: str = "geometry", path: str = "") -> None:
        check_type("records", records, Sequence, "a list of GeometryRecords")
        for record in records:
            check_type("records", record, GeometryRecord, "a list of GeometryRecords")
        if not records:
            raise ArgumentError("Expected `records` to hold at least one sample, but got none.")
        self.name = name
        self.path = path
        self.steps: NDArray[np.int64] = np.array([record.step for record in records], np.int64)
        self.metadata = {
            field: np.array([getattr(record, field) for record in records]) for field in _METADATA
        }
        self.metadata["coverage"] = np.array([record.coverage_share for record in records])
        self.model = records[-1].model
        self.specs = {name: spec for record in records for name, spec in record.specs.items()}
        self.stacks: dict[str, dict[str, NDArray[Any]]] = {}
        # a dict as an ordered set: metrics keep the order in which the records list them
        names = {(s, m): None for record in records for s, arrays in record.stacks.items() for m in arrays}
        for stack, metric in names:
            arrays = [record.stacks.get(stack, {}).get(metric) for record in records]
            self.stacks.setdefault(stack, {})[metric] = stack_samples(arrays)
        self._records = records

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, key: str) -> NDArray[Any]:
        """Return [sample, layer, head] of a metric; roles and stages of a bare name are on a last axis.

        A bare name means the main stack where the others are its parts (``encoder.part2``).
        """
        return lookup(self.stacks, key, self.specs)

    def __contains__(self, key: str) -> bool:
        return key in GeometryRecord(self.stacks, specs=self.specs)

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
            raise UnknownKeyError(f"No matrix {key!r}: no sample of this run kept any.")
        return {record.step: lookup(record.matrices, key) for record in having}

    def patterns(self, stack: str | None = None) -> dict[int, AttentionPatterns]:
        """Return where heads look in one sequence of the probe, by step; at samples with pictures only.

        Args:
            stack: Which stack of layers; needed if the model has several that attend to themselves.

        Raises:
            KeyError: If no sample has any, or several stacks have them and ``stack`` does not say which.

        Example:
            >>> kept = {"encoder": AttentionPatterns(np.zeros((1, 2, 3, 3), np.uint8), np.array([3]))}
            >>> history = GeometryHistory([GeometryRecord({}, step=step, patterns=kept) for step in (0, 50)])
            >>> [*history.patterns()], history.patterns()[50].values(layer=0, head=1).shape
            ([0, 50], (3, 3))
        """
        kept = {name: None for record in self._records for name in record.patterns}
        names = list(kept) if stack is None else [name for name in kept if name == stack]
        if len(names) != 1:
            raise UnknownKeyError(
                f"No attention patterns of the stack {stack!r}: those of {list(kept)} were recorded."
                if not names
                else f"Several stacks have attention patterns: ask for one of {names}."
            )
        having = [record for record in self._records if names[0] in record.patterns]
        return {record.step: record.patterns[names[0]] for record in having}

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


def load_history(path: str | os.PathLike[str], name: str | None = None) -> GeometryHistory:
    """Read a run back from its event files.

    Where a run was resumed, samples that a later session replaced are left out: those at or after the step at
    which it started, or at or after a sample that was written later. Damaged events are skipped with a
    warning.

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
    """Read a run as :func:`load_history` does, but keep only a part of each record.

    Args:
        path: See there.
        name: See there.
        keep: Returns the part to keep, with the record's step.
        stacklevel: Stack level of the warning about damaged parts.
    """
    from lightning_geo.storage.events import parse_dropped, parse_record, started_at

    files, skipped = event_files(place(path))
    monitors: dict[str, list[GeometryRecord]] = {}
    dropped: dict[str, str] = {}
    others: set[str] = set()
    problems: list[str] = []
    for file in files:
        for event in read_events(file):
            if isinstance(event, str):
                skipped.append(event)
                continue
            if (start := started_at(event)) is not None:
                step, whose = start
                for monitor, records in monitors.items():
                    if whose in (None, monitor):
                        _drop(records, step)
                continue
            try:
                sample = parse_record(event, problems)
                if (none := parse_dropped(event)) is not None:
                    dropped[none.monitor] = str(none)
                    continue
            except ValueError as error:
                skipped.append(f"{file}: skipped a sample ({error})")
                continue
            if sample:
                records = monitors.setdefault(sample[0], [])
                _drop(records, sample[1].step)
                records.append(keep(sample[1]))
            elif len(others) < 10:
                others.update(value.tag for value in event.summary.value)
    for records in monitors.values():
        problems += _changed_specs(records)
    skipped += dict.fromkeys(problems)  # a spec comes with every sample
    if skipped:
        shown = "; ".join(skipped[:5]) + (f"; and {len(skipped) - 5} more" if len(skipped) > 5 else "")
        warnings.warn(f"Read {os.fspath(path)!r}, skipping damaged parts: {shown}.", stacklevel=stacklevel)
    samples = [monitor for monitor, records in monitors.items() if records]
    lost = [
        reason for monitor, reason in dropped.items() if name in (None, monitor) and monitor not in samples
    ]
    if lost and (name is not None or not samples):
        raise RunError(f"{os.fspath(path)!r} has no sample. {' '.join(lost)}")
    name = _monitor(path, name, monitors, files, others, skipped)
    return GeometryHistory(monitors[name], name, os.fspath(path))


def _drop(records: list[GeometryRecord], step: int) -> None:
    while records and records[-1].step >= step:
        records.pop()


def _changed_specs(records: list[GeometryRecord]) -> Iterator[str]:
    """Metrics that a later session has given another spec, whose numbers are not those of the earlier one."""
    last: dict[str, MetricSpec] = {}
    for record in records:
        for name, spec in record.specs.items():
            if name in last and (fields := differing_fields(last[name], spec)):
                yield (
                    f"{name!r} changed its {', '.join(fields)} at step {record.step}: earlier samples do not "
                    "compare with later ones"
                )
            last[name] = spec


def _monitor(
    path: str | os.PathLike[str],
    name: str | None,
    monitors: dict[str, list[GeometryRecord]],
    files: list[Place],
    others: set[str],
    skipped: list[str],
) -> str:
    names = [monitor for monitor, records in monitors.items() if records]
    if not names:
        held = f"only tags such as {', '.join(sorted(others)[:10])}" if others else "no readable summary"
        damage = f" {skipped[0]}." if skipped else ""
        raise RunError(
            f"Expected `path` to be a run with a GeometryMonitor, but its {len(files)} event file(s) in "
            f"{os.fspath(path)!r} hold {held}.{damage} Was the monitor among the Trainer's callbacks?"
        )
    if name is None and len(names) > 1:
        raise ArgumentError(f"Expected `name` to be one of the run's monitors {names}, but got None.")
    if name is not None and name not in names:
        raise ArgumentError(f"Expected `name` to be one of the run's monitors {names}, but got {name!r}.")
    return names[0] if name is None else name
