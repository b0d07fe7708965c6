"""Finds the runs below a directory, reads them, and gives them names that tell them apart."""

from __future__ import annotations

import fnmatch
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.spec import MetricSpec, spec_of
from lightning_geo.storage.history import EVENT_FILES, GeometryHistory, load_history
from lightning_geo.storage.places import Place, named, place, walk

__all__ = [
    "Run",
    "RunError",
    "Series",
    "describe_layout",
    "find_runs",
    "layout",
    "names_of",
    "open_runs",
    "opened",
    "series",
    "series_of",
]


class RunError(ValueError):
    """A path that is no run, or runs that do not fit together; the message is for a person."""


@dataclass(frozen=True)
class Run:
    """One run as it was read.

    Args:
        name: Its path below the directory that all runs at hand share.
        path: Its directory.
        history: Its samples.
    """

    name: str
    path: Place
    history: GeometryHistory


class Series(NamedTuple):
    """One metric of a run.

    Args:
        key: Its name in the history, with the stack before it where there are several.
        stack: Stack of layers.
        name: As stored, ``effective_rank.query``.
        spec: What it is.
        values: [sample, layer] or [sample, layer, head], infinities as NaN.
    """

    key: str
    stack: str
    name: str
    spec: MetricSpec
    values: NDArray[np.float64]

    def model(self) -> NDArray[np.float64]:
        """Return the model's number at each sample: the mean over layers and heads, or the largest."""
        flat = self.values.reshape(len(self.values), -1)
        defined = np.isfinite(flat)
        if self.spec.summary == "max":
            result = np.where(defined, flat, -np.inf).max(axis=1, initial=-np.inf)
        else:
            result = np.where(defined, flat, 0).sum(axis=1) / np.maximum(defined.sum(axis=1), 1)
        return np.where(defined.any(axis=1), result, np.nan)


def series(history: GeometryHistory) -> Iterator[Series]:
    """Yield the metrics of a run that this version knows and that have a value at all, one at a time."""
    for stack, arrays in history.stacks.items():
        for name in arrays:
            if found := series_of(history, stack, name):
                yield found


def series_of(history: GeometryHistory, stack: str, name: str) -> Series | None:
    """Return one metric of a run, or None if :func:`series` would not yield it."""
    values = history.stacks.get(stack, {}).get(name)
    try:
        spec = spec_of(name)
    except KeyError:  # a newer version wrote it
        return None
    if values is None or values.ndim != 1 + len(spec.axes) or not np.isfinite(values).any():
        return None
    finite = values.astype(np.float64)
    finite[~np.isfinite(finite)] = np.nan
    return Series(f"{stack}/{name}" if len(history.stacks) > 1 else name, stack, name, spec, finite)


def layout(history: GeometryHistory) -> dict[str, tuple[int, ...]]:
    """Return the number of heads of each layer by stack."""
    described = history.structure.get("stacks")
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


def describe_layout(history: GeometryHistory) -> str:
    """Return the model and its layers and heads in words."""
    parts = []
    for stack, heads in layout(history).items():
        least, most = min(heads, default=0), max(heads, default=0)
        parts.append(
            f"{stack}: {len(heads)} layers × {most if least == most else f'{least} to {most}'} heads"
        )
    return f"{history.structure.get('model', 'unknown model')} ({', '.join(parts)})"


def find_runs(path: str | os.PathLike[str]) -> list[Place]:
    """Return the directories of the runs at and below ``path``, sorted.

    A directory with event files is a run, as in TensorBoard; of W&B's directories of one resumed run, the
    newest. Links below ``path`` are not followed: they may lead anywhere, and what they lead to within
    ``path`` is found without them.

    Args:
        path: Directory of one run or of several, or one event file; or a URL that fsspec knows.

    Raises:
        RunError: If it does not exist or there is no event file in it.
    """
    root = opened(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise RunError(f"{os.fspath(path)!r} does not exist.")
    found: list[Place] = []
    of_wandb: dict[str, Place] = {}
    # the path itself may be a link: somebody named it
    for here, files in walk(root.resolve() if root.is_symlink() else root):
        if not fnmatch.filter(files, EVENT_FILES):
            continue
        logs = [log.name for log in here.parent.glob("run-*.wandb")] if here.name == "files" else []
        if logs:
            of_wandb[min(logs)] = here.parent
        else:
            found.append(here)
    found += of_wandb.values()
    if not found:
        content = sorted(entry.name for entry in root.iterdir())[:10]
        held = f"holds {', '.join(content)}" if content else "is empty"
        raise RunError(f"{os.fspath(path)!r} has no event file (*tfevents*) in or below it: it {held}.")
    return sorted(found, key=named)


def opened(path: str | os.PathLike[str]) -> Place:
    """Return where a path or URL leads.

    Raises:
        RunError: If it is a URL that fsspec cannot open.
    """
    try:
        return place(path)
    except (ImportError, ValueError) as error:
        raise RunError(f"{os.fspath(path)!r} cannot be opened: {error}.") from error


def open_runs(
    paths: Iterable[str | os.PathLike[str]], monitor: str | None = None
) -> tuple[list[list[Run]], list[str]]:
    """Read the runs at and below each of several paths.

    Args:
        paths: What :func:`find_runs` takes.
        monitor: Name of the monitor, where runs had several.

    Returns:
        For each path its runs, and what was skipped: one line each, for a person.

    Raises:
        RunError: If a path has no run with geometry.
    """
    notes: list[str] = []
    opened: list[list[tuple[Place, GeometryHistory]]] = []
    for path in paths:
        found = find_runs(path)
        here: list[tuple[Place, GeometryHistory]] = []
        failures: list[str] = []
        for folder in found:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    here.append((folder, load_history(folder, monitor)))
                except MemoryError:
                    failures.append(f"{os.fspath(folder)!r} does not fit into memory.")
                except (OSError, ValueError) as error:
                    failures.append(str(error))
            notes += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        if not here:
            more = f" The same holds for {len(failures) - 1} more." if len(failures) > 1 else ""
            raise RunError(failures[0] + more)
        if failures:
            notes.append(
                f"{len(failures)} of {len(found)} runs in {os.fspath(path)!r} were left out. {failures[0]}"
            )
        opened.append(here)
    names = iter(names_of([folder for here in opened for folder, _ in here]))
    return [[Run(next(names), folder, history) for folder, history in here] for here in opened], notes


def names_of(paths: Sequence[Place]) -> list[str]:
    """Return each path below the directory that all share: everyone's last folder is ``version_0``.

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
