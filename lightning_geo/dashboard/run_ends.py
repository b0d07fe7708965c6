"""First and last sample of many series: what the table of runs shows of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tensorboard.data.provider import RunTagFilter

from lightning_geo.dashboard.metadata import PLUGIN
from lightning_geo.dashboard.samples import in_force
from lightning_geo.metrics.reductions import reduce_finite

__all__ = ["End", "RunEnds", "Series", "stamp_of"]

_ALL = 10**9  # samples; the provider wants a number
_LARGEST = 64 * 2**20  # bytes of a request
_TRUSTED = 60.0  # seconds after which a series that went on may have begun anew, in the same directory

#: Last step and wall time of a series.
_Stamp = tuple[int, float]


class Series(NamedTuple):
    """A stored series.

    Args:
        run: As TensorBoard names it.
        tag: Under which it is stored.
        stamp: Of its last sample.
        summary: How a sample becomes one number: ``"mean"`` or ``"max"``.
    """

    run: str
    tag: str
    stamp: _Stamp
    summary: str


class End(NamedTuple):
    """Step and model summary of a sample; None where there is no sample, no finite value, or damage."""

    step: int | None
    value: float | None
    damaged: bool = False


@dataclass
class _Known:
    """What was read of a series."""

    first: End | None = None
    last: End | None = None
    marks: list[_Stamp] = field(default_factory=list)  # of resumed sessions, when the first was read
    whole: _Stamp | None = None  # the series when it was read as a whole
    newest: tuple[_Stamp, list[_Stamp]] | None = None  # the series and the marks when its last was read
    read: float = 0.0  # when it was read as a whole


class RunEnds:
    """Reads the ends of series and keeps them, so that only series that went on are read again.

    TensorBoard gives the last sample of many series at once. The first it gives with the whole series only,
    as any other number of samples is drawn at random: these are read run after run until a deadline.

    Args:
        provider: TensorBoard's data provider.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._known: dict[tuple[str, str, str], _Known] = {}

    def read(
        self,
        ctx: Any,
        experiment: str,
        series: Sequence[Series],
        sessions: Mapping[str, Sequence[Any]],
        deadline: float,
    ) -> list[tuple[End | None, End | None]]:
        """Return first and last sample in force of each series; None for what is not known yet.

        Args:
            ctx: Of the request.
            experiment: Of the request.
            series: What to read, those of a run in a row.
            sessions: Starts of resumed sessions, by run.
            deadline: Time (``time.monotonic``) from which on no whole series is read.
        """
        self._last(ctx, experiment, series, sessions)
        marks = {s.run: _marks(sessions.get(s.run, ())) for s in series}
        known = [self._of(experiment, s) for s in series]
        missing = [
            s
            for s, k in zip(series, known, strict=True)
            if k.first is None or k.last is None or k.marks != marks[s.run]
        ]
        self._wholes(ctx, experiment, missing, sessions, deadline)
        now = time.monotonic()
        old = [
            s for s, k in zip(series, known, strict=True) if k.whole != s.stamp and now - k.read > _TRUSTED
        ]
        self._wholes(ctx, experiment, [s for s in old if s not in missing], sessions, deadline)
        return [
            (k.first if k.marks == marks[s.run] else None, k.last) for s, k in zip(series, known, strict=True)
        ]

    def _of(self, experiment: str, s: Series) -> _Known:
        return self._known.setdefault((experiment, s.run, s.tag), _Known())

    def _last(
        self, ctx: Any, experiment: str, series: Sequence[Series], sessions: Mapping[str, Sequence[Any]]
    ) -> None:
        news = [
            s for s in series if self._of(experiment, s).newest != (s.stamp, _marks(sessions.get(s.run, ())))
        ]
        data = self._tensors(ctx, experiment, {s.run for s in news}, {s.tag for s in news}, 1)
        for s in news:
            known = self._of(experiment, s)
            standing = in_force(data.get(s.run, {}).get(s.tag, [])[-1:], sessions.get(s.run, ()))
            # one that a resumed session replaced: the last in force is found in the whole series
            known.last = _end(standing[-1], s.summary) if standing else None
            known.newest = s.stamp, _marks(sessions.get(s.run, ()))

    def _wholes(
        self,
        ctx: Any,
        experiment: str,
        series: Sequence[Series],
        sessions: Mapping[str, Sequence[Any]],
        deadline: float,
    ) -> None:
        """Read whole series until the deadline: a run's first tells how many of them fit into a request."""
        for _, of_run in itertools.groupby(series, key=lambda s: s.run):
            waiting, size = list(of_run), _LARGEST
            while waiting and time.monotonic() < deadline:
                count = max(1, _LARGEST // max(1, size))
                size = self._whole(ctx, experiment, waiting[:count], sessions)
                waiting = waiting[count:]

    def _whole(
        self, ctx: Any, experiment: str, batch: Sequence[Series], sessions: Mapping[str, Sequence[Any]]
    ) -> int:
        """Read series of one run; return the bytes of the largest."""
        run = batch[0].run
        starts = sessions.get(run, ())
        data = self._tensors(ctx, experiment, {run}, {s.tag for s in batch}, _ALL).get(run, {})
        for s in batch:
            known = self._of(experiment, s)
            standing = in_force(data.get(s.tag, []), starts)
            ends = [_end(standing[at], s.summary) if standing else End(None, None) for at in (0, -1)]
            known.first, known.last = ends
            known.marks, known.whole = _marks(starts), s.stamp
            known.newest = s.stamp, known.marks
            known.read = time.monotonic()
        return max((sum(datum.numpy.nbytes for datum in samples) for samples in data.values()), default=0)

    def _tensors(
        self, ctx: Any, experiment: str, runs: Collection[str], tags: Collection[str], limit: int
    ) -> dict[str, Any]:
        if not runs:
            return {}
        tensors: dict[str, Any] = self._provider.read_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=PLUGIN,
            run_tag_filter=RunTagFilter(sorted(runs), sorted(tags)),
            downsample=limit,
        )
        return tensors


def stamp_of(series: Any) -> _Stamp:
    """Return the stamp of a series as the provider lists it."""
    return int(series.max_step), float(series.max_wall_time)


def _marks(sessions: Sequence[Any]) -> list[_Stamp]:
    return [(int(s.step), float(s.wall_time)) for s in sessions]


def _end(datum: Any, summary: Any) -> End:
    values = datum.numpy
    if values.dtype.kind not in "fiu":
        return End(int(datum.step), None, damaged=True)
    number = float(reduce_finite(values.reshape(-1), summary))
    return End(int(datum.step), number if abs(number) < float("inf") else None)
