"""Reads other scalars that a run logged to event files or a CSV file: loss, scores, learning rate."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.storage.event_files import event_files, read_events
from lightning_geo.storage.events import PLUGIN, started_at
from lightning_geo.storage.places import Place
from lightning_geo.storage.run_curves import curve_tags

__all__ = ["Scalars", "read_scalars"]


class Scalars(NamedTuple):
    """One tag of a run.

    Args:
        steps: [point] ascending.
        values: [point]; NaN where it was not finite.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def read_scalars(path: Place, monitor: str) -> dict[str, Scalars]:
    """Return the scalars of a run by tag, without its monitor's own.

    They are those of its event files, and of ``metrics.csv`` beside them what the event files have not:
    Lightning's CSVLogger, and Fabric's, write it.

    Points that a resumed session replaced are left out, as :func:`load_history` leaves out samples.

    Args:
        path: The run's directory; scalars that went elsewhere (W&B) are absent.
        monitor: Name of the monitor, whose scalars are in its record.

    Raises:
        FileNotFoundError: If there is no event file.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    files, _ = event_files(path)
    folders = dict.fromkeys(file.parent for file in files)
    for file in files:
        for event in read_events(file):
            if isinstance(event, str):  # damaged; reading the record warns of it
                continue
            if (start := started_at(event)) is not None:
                for of_tag in points.values():
                    _drop(of_tag, start[0])
                continue
            for value in event.summary.value:
                if _is_scalar(value):
                    of_tag = points.setdefault(value.tag, [])
                    _drop(of_tag, event.step)
                    of_tag.append((event.step, value.simple_value))
    of_csv: dict[str, list[tuple[int, float]]] = {}
    for folder in folders:
        for tag, step, number in _csv_points(folder / "metrics.csv"):
            of_tag = of_csv.setdefault(tag, [])
            _drop(of_tag, step)
            of_tag.append((step, number))
    points = of_csv | points
    return {tag: _as_arrays(points[tag]) for tag in curve_tags(points, [monitor, PLUGIN])}


def _csv_points(file: Place) -> Iterator[tuple[str, int, float]]:
    """Yield tag, step and value of each number of a CSV file with a column ``step``; none if it is absent."""
    if not file.is_file():
        return
    with file.open("rb") as binary:
        whole, end, _ = binary.read().decode(errors="replace").rpartition("\n")  # a last line may grow still
    for row in csv.DictReader(io.StringIO(whole + end, newline="")):
        with contextlib.suppress(TypeError, ValueError):  # no step: not such a file
            step = int(row.pop("step", ""))
            for tag, text in row.items():
                with contextlib.suppress(TypeError, ValueError):  # nothing logged here, or no number
                    yield tag, step, float(text)


def _drop(points: list[tuple[int, float]], step: int) -> None:
    while points and points[-1][0] >= step:
        points.pop()


def _is_scalar(value: Any) -> bool:
    return bool(value.WhichOneof("value") == "simple_value")


def _as_arrays(points: list[tuple[int, float]]) -> Scalars:
    values = np.array([value for _, value in points], np.float64)
    values[~np.isfinite(values)] = np.nan
    return Scalars(np.array([step for step, _ in points], np.int64), values)
