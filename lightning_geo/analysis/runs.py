"""Reads the runs below a directory, with names that tell them apart, and their metrics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.reductions import reduce_finite
from lightning_geo.metrics.selection import select, spec_of
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.event_files import find_runs
from lightning_geo.storage.history import GeometryHistory, load_history
from lightning_geo.storage.places import Place, named
from lightning_geo.storage.record import stored_parts
from lightning_geo.utils.errors import ArgumentError, RunError

__all__ = [
    "MetricSeries",
    "Run",
    "describe_model",
    "find_series",
    "heads_per_layer",
    "metric_series",
    "names_of",
    "open_runs",
    "own_metrics",
    "requested_series",
    "stored_names",
]


@dataclass(frozen=True)
class Run:
    """One run as it was read.

    Args:
        name: Its path relative to the directory that the compared runs share.
        path: Its directory.
        history: Its samples.
    """

    name: str
    path: Place
    history: GeometryHistory


class MetricSeries(NamedTuple):
    """One metric of a run.

    Args:
        key: Its name in the history, with the stack before it where there are several.
        stack: Stack of layers.
        name: As stored, ``effective_rank.query``.
        spec: The metric's entry in the catalog, or of one that is not built in the run's own.
        values: [sample, layer] or [sample, layer, head], infinities as NaN.
    """

    key: str
    stack: str
    name: str
    spec: MetricSpec
    values: NDArray[np.float64]

    def model(self) -> NDArray[np.float64]:
        """Return [sample]: the mean over layers and heads, or the maximum where the metric says so."""
        return reduce_finite(self.values, self.spec.summary, keep=1)

    def layers(self) -> NDArray[np.float64]:
        """Return [sample, layer]: each layer's mean over its heads, or the maximum."""
        return reduce_finite(self.values, self.spec.summary, keep=2)


def metric_series(history: GeometryHistory) -> Iterator[MetricSeries]:
    """Yield the metrics of a run that this version knows and that have a value, one at a time."""
    for stack, arrays in history.stacks.items():
        for name in arrays:
            if series := find_series(history, stack, name):
                yield series


def find_series(history: GeometryHistory, stack: str, name: str) -> MetricSeries | None:
    """Return one metric of a run, or None if :func:`metric_series` would not yield it."""
    values = history.stacks.get(stack, {}).get(name)
    try:
        spec = spec_of(name, history.specs)
    except KeyError:  # a metric of a newer version, or one whose spec is damaged
        return None
    if values is None or values.ndim != 1 + len(spec.axes) or not np.isfinite(values).any():
        return None
    finite = values.astype(np.float64)
    finite[~np.isfinite(finite)] = np.nan
    return MetricSeries(f"{stack}/{name}" if len(history.stacks) > 1 else name, stack, name, spec, finite)


def requested_series(history: GeometryHistory, key: str) -> list[MetricSeries]:
    """Return what `history[key]` holds, one series for each role or stage.

    Raises:
        KeyError: If the run lacks the metric, or several stacks have it.
        ValueError: If it has no value at any sample.
    """
    stack, names = stored_parts(history.stacks, key, history.specs)
    with_values = [series for name in names if (series := find_series(history, stack, name)) is not None]
    if not with_values:
        raise ArgumentError(f"Expected `metric` to have a value, but {key!r} has none at any sample.")
    return with_values


def own_metrics(history: GeometryHistory) -> list[MetricSeries]:
    """Return the metrics of a run that are not built in, each spec once, with the first of its series."""
    first: dict[str, MetricSeries] = {}
    for series in metric_series(history):
        if series.spec.name in history.specs:
            first.setdefault(series.spec.name, series)
    return list(first.values())


def stored_names(metrics: Iterable[str], specs: Mapping[str, MetricSpec]) -> tuple[str, ...]:
    """Return the stored names that families and metrics mean.

    Args:
        metrics: Families, metrics or stored names.
        specs: Of the metrics that are not built in.

    Raises:
        RunError: If one is unknown.
    """
    try:
        return select(metrics, specs)
    except ValueError as error:
        raise RunError(str(error)) from error


def heads_per_layer(history: GeometryHistory) -> dict[str, tuple[int, ...]]:
    """Return the number of heads of each layer by stack."""
    described = history.model.get("stacks")
    result = {}
    for stack, arrays in history.stacks.items():
        entry = described.get(stack) if isinstance(described, dict) else None
        heads = entry.get("heads") if isinstance(entry, dict) else None
        known = isinstance(heads, list) and bool(heads) and all(isinstance(count, int) for count in heads)
        result[stack] = tuple(heads) if known else _size(arrays)  # type: ignore[arg-type]
    return result


def _size(arrays: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
    shapes = [array.shape[1:] for array in arrays.values() if array.ndim > 1]
    heads = max((shape[1] for shape in shapes if len(shape) > 1), default=0)
    return (heads,) * max((shape[0] for shape in shapes), default=0)


def describe_model(history: GeometryHistory) -> str:
    """Return the model class with its layers and heads as text."""
    parts = []
    for stack, heads in heads_per_layer(history).items():
        least, most = min(heads, default=0), max(heads, default=0)
        parts.append(
            f"{stack}: {len(heads)} layers × {most if least == most else f'{least} to {most}'} heads"
        )
    return f"{history.model.get('class', 'unknown model')} ({', '.join(parts)})"


def open_runs(
    paths: Iterable[str | os.PathLike[str]], monitor: str | None = None
) -> tuple[list[list[Run]], list[str]]:
    """Read the runs at and below each of several paths.

    Args:
        paths: What :func:`find_runs` takes.
        monitor: Name of the monitor, where runs had several.

    Returns:
        The runs of each path, and one line for each thing that was skipped.

    Raises:
        RunError: If a path has no run with geometry.
    """
    notes: list[str] = []
    opened: list[list[tuple[Place, GeometryHistory]]] = []
    for path in paths:
        folders = find_runs(path)
        histories: list[tuple[Place, GeometryHistory]] = []
        failures: list[str] = []
        for folder in folders:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    histories.append((folder, load_history(folder, monitor)))
                except MemoryError:
                    failures.append(f"{os.fspath(folder)!r} does not fit into memory.")
                except (OSError, ValueError) as error:
                    failures.append(str(error))
            notes += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        if not histories:
            more = f" {len(failures) - 1} more could not be read either." if len(failures) > 1 else ""
            raise RunError(failures[0] + more)
        if failures:
            notes.append(
                f"Skipped {len(failures)} of {len(folders)} runs in {os.fspath(path)!r}. {failures[0]}"
            )
        opened.append(histories)
    names = iter(names_of([folder for histories in opened for folder, _ in histories]))
    return [
        [Run(next(names), folder, history) for folder, history in histories] for histories in opened
    ], notes


def names_of(paths: Sequence[Place]) -> list[str]:
    """Return each path relative to the directory that all share: every last folder may be ``version_0``.

    Example:
        >>> from pathlib import Path
        >>> names_of([Path("runs/bert/version_0"), Path("runs/lora/version_0")])
        ['bert/version_0', 'lora/version_0']
        >>> names_of([Path("runs/bert/version_0")])
        ['bert/version_0']
    """
    folders = [named(path) for path in paths]
    if len(set(folders)) == 1:
        return ["/".join(folder.parts[-2:]) for folder in folders]
    shared = os.path.commonpath(folders)
    return [os.path.relpath(folder, shared) if str(folder) != shared else folder.name for folder in folders]
