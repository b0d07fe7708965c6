"""``lightning-geo tail``: a line for each sample as it is recorded, with the run's course until there."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from lightning_geo.analysis.findings.words import span
from lightning_geo.analysis.runs import metric_series
from lightning_geo.cli.command import RUN, add_command
from lightning_geo.storage.event_files import find_runs, opened
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.follow import Follower, News
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.places import Place, modified
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import number, plain
from lightning_geo.utils.sparkline import sparkline
from lightning_geo.utils.tables import Columns, display_width, terminal_width, wrapped

__all__ = ["add_parser", "follow", "newest"]

_COLUMNS = ("normalized_entropy", "cone.output", "effective_rank.output", "redundancy", "drift.output")
_EARLIER = 10  # samples recorded before the start that are shown
_HEADER = 20  # lines between two headers
_NUMBER = 8  # columns of a number at most
_COURSE = 5  # columns of the run's course
_METRIC = _NUMBER + 1 + _COURSE
_CHANGE = "largest change"
_COLOURS = {"critical": "\x1b[31m", "warning": "\x1b[33m", "note": ""}


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "tail", _run, "stream samples as they are recorded (Ctrl-C stops)")
    parser.add_argument("run", metavar="RUN", help=f"{RUN}; of several, the one written to last")


def _run(options: argparse.Namespace) -> int:
    run = newest(options.run)
    try:
        print(plain(run), flush=True)
        for line in follow(run, options.monitor):
            print(line, flush=True)
    except KeyboardInterrupt:
        print()
    return 0


def newest(path: str | os.PathLike[str]) -> Place:
    """Return the run at or below a path that was written to last; the path itself where there is none yet.

    Raises:
        RunError: If the path does not exist.
    """
    where = opened(path)
    if not where.exists():
        raise RunError(f"{os.fspath(path)!r} does not exist.")
    try:
        runs = find_runs(path)
    except RunError:
        return where

    def written(run: Place) -> float:
        if run.is_file():
            return modified(run)
        return max((modified(file) for file in run.rglob("*tfevents*") if file.is_file()), default=0.0)

    return max(runs, key=written)


def follow(path: Place, monitor: str | None = None, interval: float = 1.0) -> Iterator[str]:
    """Yield lines for a terminal, without end: the latest samples, then each new one as it is recorded.

    Args:
        path: Directory of one run, or one event file.
        monitor: Name of the monitor; ``None`` for all.
        interval: Seconds between two looks.
    """
    follower, lines = Follower(path), _Lines()
    earlier: deque[News] = deque()
    for news in follower.poll():
        if monitor in (None, news.monitor) or news.text:
            earlier.append(news)
        if len(earlier) > _EARLIER and (oldest := earlier.popleft()).record is not None:
            lines.pass_over(oldest.record)
    if not any(news.record for news in earlier):
        yield wrapped(f"{path}: waiting for the first sample.", terminal_width())
    for news in earlier:
        yield from [wrapped(news.text, terminal_width())] if news.record is None else lines.of(news.record)
    while True:
        time.sleep(interval)
        for news in follower.poll():
            if news.record is None:
                yield wrapped(news.text, terminal_width())
            elif monitor in (None, news.monitor):
                yield from lines.of(news.record)


class _Lines:
    """Samples as lines of a table, each followed by the findings that it opened or ended."""

    def __init__(self) -> None:
        self._before: GeometryRecord | None = None
        self._keys: list[str] = []
        #: model numbers of all samples by key, those before the first line included
        self._courses: dict[str, list[float]] = {}
        self._columns: Columns
        self._count = 0

    def of(self, record: GeometryRecord) -> Iterator[str]:
        """Yield the sample's line, after the header if it is due."""
        self.pass_over(record)
        if self._count % _HEADER == 0:
            self._columns = self._as_wide_as_the_terminal()  # which may have been resized
            yield self._columns.header()
        self._count += 1
        cells = (self._cell(self._courses[key]) for key in self._keys)
        yield self._columns.line((str(record.step), str(record.epoch), *cells, self._most(record)))
        self._before = record
        yield from map(_finding, record.findings)

    def pass_over(self, record: GeometryRecord) -> None:
        """Add a sample to the courses without a line of its own."""
        models = {
            series.key: float(series.model()[-1]) for series in metric_series(GeometryHistory([record]))
        }
        if not self._keys:
            self._keys = [key for name in _COLUMNS for key in models if key.rpartition("/")[2] == name][:6]
        for key in self._keys:
            self._courses.setdefault(key, []).append(models.get(key, float("nan")))

    @staticmethod
    def _cell(course: list[float]) -> str:
        return f"{number(course[-1], digits=3)} {sparkline(course, _COURSE):<{_COURSE}}"

    def _as_wide_as_the_terminal(self) -> Columns:
        titles = ("step", "epoch", *self._keys, _CHANGE)
        widths = (8, 5, *(max(display_width(plain(key)), _METRIC) for key in self._keys), 40)
        return Columns(
            titles,
            widths,
            left=(_CHANGE,),
            least={**dict.fromkeys(self._keys, _METRIC), _CHANGE: 28},
            # the largest change is more informative than a fifth metric
            drop=(*((key,) for key in self._keys[4:][::-1]), (_CHANGE,), *((k,) for k in self._keys[3::-1])),
            width=terminal_width(),
        )

    def _most(self, record: GeometryRecord) -> str:
        """Find the largest difference to the previous sample, in units of the metric's spread."""
        if self._before is None:
            return ""
        try:
            two = GeometryHistory([self._before, record])
        except ValueError:  # of another model
            return ""
        most, largest = 0.0, ""
        for series in metric_series(two):
            if series.name not in series.spec.headline or not np.isfinite(series.values[0]).any():
                continue
            change = np.nan_to_num(series.values[1] - series.values[0])
            place = np.unravel_index(int(np.abs(change).argmax()), change.shape)
            spread = float(np.nanstd(series.values[0]))
            if spread > 1e-6 and abs(change[place]) / spread > most:
                most = abs(float(change[place])) / spread
                where = f"L{place[0]}" + (f" H{place[1]}" if len(place) > 1 else "")
                largest = f"{series.key} {where} {number(float(change[place]), signed=True)}"
        return largest


def _finding(finding: Finding) -> str:
    """A finding below the sample that opened or ended it, in colour where a terminal shows it."""
    text = f"{finding.severity} {span(finding)}: {finding.message}"
    lines = wrapped(text, terminal_width(), first="  ! ", rest="    ")
    colour = _COLOURS[finding.severity] if finding.until_step is None else ""
    plain_output = "NO_COLOR" in os.environ or not sys.stdout.isatty()
    return lines if plain_output or not colour else f"{colour}{lines}\x1b[0m"
