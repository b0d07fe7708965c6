"""First and last sample of many series: what the table of runs shows of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tensorboard.data.provider import RunTagFilter

from lightning_geo.dashboard.metadata import PLUGIN
from lightning_geo.dashboard.samples import in_force
from lightning_geo.metrics.reductions import reduce_finite

__all__ = ["End", "RunEnds", "Series", "Stamp", "stamp_of"]

_ALL = 10**9  # samples; the provider wants a number
_TRUSTED = 60.0  # seconds after which a series that went on may have begun anew, in the same directory

#: Last step and wall time of a series.
Stamp = tuple[int, float]


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
    stamp: Stamp
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
    marks: list[Stamp] = field(default_factory=list)  # of resumed sessions, when the first was read
    whole: Stamp | None = None  # the series when it was read as a whole
    newest: tuple[Stamp, list[Stamp]] | None = None  # the series and the marks when its last was read
    read: float = 0.0  # when it was read as a whole


class RunEnds:
    """Reads the ends of series and keeps them, so that only series that went on are read again.

    TensorBoard gives the last sample of many series at once. The first it gives with the whole series only,
    as any other number of samples is drawn at random: these are read one by one until a deadline.

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
    ) -> Iterator[tuple[End | None, End | None]]:
        """Yield first and last sample in force of each series; None for what is not known yet.

        Args:
            ctx: Of the request.
            experiment: Of the request.
            series: What to read.
            sessions: Starts of resumed sessions, by run.
            deadline: Time (``time.monotonic``) from which on no whole series is read.
        """
        self._last(ctx, experiment, series, sessions)
        for again in (False, True):  # what is missing before what may be out of date
            for s in series:
                known = self._of(experiment, s)
                marks = _marks(sessions.get(s.run, ()))
                missing = known.first is None or known.last is None or known.marks != marks
                old = known.whole != s.stamp and time.monotonic() - known.read > _TRUSTED
                if (old if again else missing) and time.monotonic() < deadline:
                    self._whole(ctx, experiment, s, sessions.get(s.run, ()), known)
        for s in series:
            known = self._of(experiment, s)
            trusted = known.marks == _marks(sessions.get(s.run, ()))
            yield (known.first if trusted else None), known.last

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

    def _whole(self, ctx: Any, experiment: str, s: Series, sessions: Sequence[Any], known: _Known) -> None:
        data = self._tensors(ctx, experiment, {s.run}, {s.tag}, _ALL).get(s.run, {}).get(s.tag, [])
        standing = in_force(data, sessions)
        nothing = End(None, None)
        known.first = _end(standing[0], s.summary) if standing else nothing
        known.last = _end(standing[-1], s.summary) if standing else nothing
        known.marks, known.whole = _marks(sessions), s.stamp
        known.newest = s.stamp, known.marks
        known.read = time.monotonic()

    def _tensors(
        self, ctx: Any, experiment: str, runs: Collection[str], tags: Collection[str], limit: int
    ) -> dict[str, Any]:
        if not runs:
            return {}
        found: dict[str, Any] = self._provider.read_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=PLUGIN,
            run_tag_filter=RunTagFilter(sorted(runs), sorted(tags)),
            downsample=limit,
        )
        return found


def stamp_of(series: Any) -> Stamp:
    """Return the stamp of a series as the provider lists it."""
    return int(series.max_step), float(series.max_wall_time)


def _marks(sessions: Sequence[Any]) -> list[Stamp]:
    return [(int(s.step), float(s.wall_time)) for s in sessions]


def _end(datum: Any, summary: Any) -> End:
    values = datum.numpy
    if values.dtype.kind not in "fiu":
        return End(int(datum.step), None, damaged=True)
    number = float(reduce_finite(values.reshape(-1), summary))
    return End(int(datum.step), number if abs(number) < float("inf") else None)
