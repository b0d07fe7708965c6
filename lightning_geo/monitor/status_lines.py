"""The lines that a monitor logs besides findings: three when a run starts, four when it ends."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lightning_geo.analysis.changes import change_of
from lightning_geo.analysis.runs import describe_model, metric_series
from lightning_geo.metrics.key_metrics import key_metrics
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.formatting import moved, number
from lightning_geo.utils.warn_once import prefix_of

__all__ = ["StatusLines"]

_COSTED = 3  # samples after which their cost is known: the first one warms caches up
_CHANGES = 2


class StatusLines:
    """Makes the lines of one session of a run, from plain values.

    Args:
        how_often: When samples are taken, in words.
        max_overhead: Share of the run's time that samples may take; ``None`` for no limit.
        clock: Seconds.
        name: Of the monitor.
    """

    def __init__(
        self,
        how_often: str,
        max_overhead: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        name: str = "geometry",
    ) -> None:
        self._name, self._prefix = name, prefix_of(name)
        self._how_often, self._max_overhead, self._clock = how_often, max_overhead, clock
        #: the inputs of samples, in words
        self.inputs = ""
        self._first: GeometryRecord | None = None
        self._last: GeometryRecord | None = None
        self._count = 0
        #: when the first sample had been recorded, and what samples had cost until then
        self._since = (0.0, 0.0)

    def anew(self) -> StatusLines:
        """Return the lines of another session."""
        return StatusLines(self._how_often, self._max_overhead, self._clock, self._name)

    def sampled(
        self, record: GeometryRecord, *, cost: float, directory: str, places: str, final: bool
    ) -> list[str]:
        """Return the lines that follow a sample: two after the first, one after the third.

        Args:
            record: The sample.
            cost: Seconds that all samples have cost.
            directory: Where the run's record is; empty for nowhere.
            places: Where else its numbers can be looked at.
            final: Whether it is the run's last.
        """
        self._count += 1
        record = replace(record, matrices={}, findings=[])
        self._first, self._last = self._first or record, record
        if self._count == 1:
            self._since = self._clock(), cost
            model = describe_model(GeometryHistory([record]))
            look = _joined(f"lightning-geo tail {shlex.quote(directory)}" if directory else "", places)
            return [
                f"{self._prefix}found {model}. Measured on {self.inputs}.",
                f"{self._prefix}samples are taken {self._how_often}. Where to look: {look}",
            ]
        if self._count == _COSTED and not final:
            return [f"{self._prefix}{self._price(cost)}"]
        return []

    def _price(self, cost: float) -> str:
        started, before = self._since
        added, elapsed = cost - before, max(self._clock() - started, 1e-9)
        sample, share = added / (_COSTED - 1), min(added / elapsed, 1.0)
        text = f"a sample takes {number(sample, digits=2)} s"
        if self._max_overhead is not None:
            return (
                f"{text}; they are spaced to take at most {100 * self._max_overhead:g} % of the run's time."
            )
        text += f", about {number(100 * share, digits=2)} % of the run's time at this interval"
        if share > 0.01:
            return f"{text}; `max_overhead=0.01` would keep it at 1 %."
        return f"{text}; `max_overhead=` would cap it."

    def ended(
        self, *, samples: int, cost: float, seconds: float, verdict: str | None, directory: str, places: str
    ) -> list[str]:
        """Return the lines at the end of a run: cost, verdict, largest changes, commands.

        Args:
            samples: How many there were.
            cost: Seconds that they took.
            seconds: Seconds that the run took.
            verdict: Of the run's findings; ``None`` where nothing was looked for.
            directory: Where the run's record is; empty for nowhere.
            places: Where else its numbers can be looked at.
        """
        counted = "1 sample" if samples == 1 else f"{samples} samples"
        show = f"lightning-geo show {shlex.quote(directory)} (or report)" if directory else ""
        lines = [
            f"{counted} in {cost:.1f} s ({100 * cost / max(seconds, 1e-9):.1f} % of the run).",
            verdict or "no verdict: nothing was looked for (`alerts=False`).",
            self._changes(),
            f"look closer: {_joined(show, places)}",
        ]
        return [self._prefix + line for line in lines]

    def _changes(self) -> str:
        if self._first is None or self._last is None or self._first.step == self._last.step:
            return "largest changes: unknown after one sample."
        since = f" since step {self._first.step}" if self._first.step else ""
        history = GeometryHistory([self._first, self._last])
        names = [name for name in key_metrics(None, self._last.specs) if not compares_samples(name)]
        changes = [
            change
            for series in metric_series(history)
            if series.name in names and (change := change_of(series, history.steps)) and change.size > 0
        ]
        changes.sort(key=lambda change: -change.size)
        texts = []
        for change in changes[:_CHANGES]:
            first, last = change.series.layers()[[0, -1]]
            text = f"{change.series.key} {moved(change.first, change.last)}"
            if len(first) > 1:
                layer = int(np.nanargmax(np.abs(last - first)))
                text += f" (layer {layer}: {moved(first[layer], last[layer])})"
            texts.append(text)
        return f"largest changes{since}: {', '.join(texts) or 'none'}."


def _joined(*places: str) -> str:
    return "; ".join(filter(None, places)) or "nowhere, there is no logger and no record"
