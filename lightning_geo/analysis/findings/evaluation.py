"""Evaluates one rule in one stack, sample by sample: which layers and heads show it, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.findings.rule import Departure, Level, Rule
from lightning_geo.analysis.findings.trend import Trend
from lightning_geo.storage.record import GeometryRecord

__all__ = ["Evaluation", "Shown", "evaluation_of"]

_Arrays = Mapping[str, NDArray[Any]]
_Cells = NDArray[np.float64]


class Shown(NamedTuple):
    """What a sample shows of a rule.

    Args:
        metric: Stored name of the metric that shows it most.
        cells: [layer] or [layer, head], where the rule has held for as many samples as it must.
        values: The same shape, the metric's values.
        low: The same shape, lower end of the usual values.
        high: The same shape, their upper end.
        others: Stored names of the further metrics that show it.
        holds: Whether any layer or head shows it at this sample, for however long.
    """

    metric: str
    cells: NDArray[np.bool_]
    values: _Cells
    low: _Cells
    high: _Cells
    others: tuple[str, ...] = ()
    holds: bool = False


class Evaluation(Protocol):
    """One rule in one stack."""

    def update(self, record: GeometryRecord, stack: str, arrays: _Arrays) -> Shown | None:
        """Take the next sample; ``None`` where it has none of the rule's metrics."""

    def state_dict(self) -> dict[str, Any]:
        """Return containers, numbers and arrays."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""


def evaluation_of(rule: Rule) -> Evaluation:
    """Return a new evaluation of a rule."""
    if isinstance(rule.test, Level):
        return _Levels(rule, rule.test)
    if isinstance(rule.test, Departure):
        return _Departures(rule, rule.test)
    return _NotFinite(rule)


class _Levels:
    """How long each layer or head has been beyond a limit."""

    def __init__(self, rule: Rule, level: Level) -> None:
        self._rule, self._level = rule, level
        #: by metric: the last values, the first ones, and samples in a row beyond the limit
        self._values: dict[str, _Cells] = {}
        self._start: dict[str, _Cells] = {}
        self._streak: dict[str, NDArray[np.int64]] = {}

    def update(self, record: GeometryRecord, stack: str, arrays: _Arrays) -> Shown | None:
        measured = [metric for metric in self._rule.metrics if metric in arrays]
        measured = [metric for metric in measured if not np.isnan(arrays[metric]).all()]
        if not measured:
            return None
        for metric in measured:
            self._take(metric, arrays)
        shown: list[Shown] = []
        for metric, values in self._values.items():  # one that is measured less often stands meanwhile
            start, streak = self._start[metric], self._streak[metric]
            cells = _of_whole_layers(streak >= self._rule.samples, np.isfinite(values), self._rule.heads)
            shown.append(Shown(metric, cells, values, start, start, holds=bool(streak.any())))
        most = max(shown, key=lambda one: float(one.cells.mean()))
        others = tuple(one.metric for one in shown if one is not most and one.cells.any())
        return most._replace(others=others, holds=any(one.holds for one in shown))

    def _take(self, metric: str, arrays: _Arrays) -> None:
        values = self._values[metric] = np.asarray(arrays[metric], np.float64)
        start = self._start.get(metric)
        if start is None or start.shape != values.shape:
            start = self._start[metric] = self._start_of(metric, values, arrays)
            self._streak[metric] = np.zeros(values.shape, np.int64)
        np.copyto(start, values, where=np.isnan(start))  # its first value may come later
        self._streak[metric] += 1
        self._streak[metric] *= self._level.holds(values, start)

    def _start_of(self, metric: str, values: _Cells, arrays: _Arrays) -> _Cells:
        reference = arrays.get(self._level.start_of or metric)
        return np.array(values if reference is None or reference.shape != values.shape else reference, float)

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self._values), "start": dict(self._start), "streak": dict(self._streak)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._values, self._start = dict(state["values"]), dict(state["start"])
        self._streak = dict(state["streak"])


class _Departures:
    """The trends of all layers and heads of all the rule's metrics, side by side in one array."""

    def __init__(self, rule: Rule, departure: Departure) -> None:
        self._rule, self._departure = rule, departure
        floor = np.log1p(departure.share) if departure.log else departure.share
        self._trend = Trend(
            departure.window, departure.guard, floor / departure.spreads,
            absolute=departure.log, settled=departure.settled, slope=departure.slope,
        )  # fmt: skip
        #: shapes by metric, in the order of the cells
        self._shapes: dict[str, tuple[int, ...]] = {}
        #: [cell] samples in a row above the trend, negative for below
        self._streak: NDArray[np.int64] = np.zeros(0, np.int64)
        self._last: tuple[int, int] | None = None

    def update(self, record: GeometryRecord, stack: str, arrays: _Arrays) -> Shown | None:
        present = {name: arrays[name].shape for name in self._rule.metrics if name in arrays}
        if not present or not self._counts(record.step):
            return None
        if any(self._shapes.get(name) != shape for name, shape in present.items()):
            self._shapes = present  # the trend starts anew with as many cells
        departure = self._departure
        values = np.concatenate(
            [
                np.asarray(arrays[name], np.float64).ravel()
                if name in present
                else np.full(np.prod(shape), np.nan)
                for name, shape in self._shapes.items()
            ]
        )
        scale = values
        if departure.log:
            scale = np.full(len(values), np.nan)
            np.log(values, where=values > 0, out=scale)
        scale[~np.isfinite(scale)] = np.nan
        prediction, score = self._trend.update(record.step, scale)
        if len(self._streak) != len(values):
            self._streak = np.zeros(len(values), np.int64)
        self._follow(scale, prediction, score)
        longest = int(np.abs(self._streak).max(initial=0))
        if longest < self._rule.samples:
            return Shown(next(iter(present)), *_none(next(iter(present.values()))), holds=longest > 0)
        return self._shown(values, scale, prediction, score)

    def _counts(self, step: int) -> bool:
        """Whether the sample compares with those before: after as many steps, where that matters."""
        last = self._last
        gap = 0 if last is None else step - last[0]
        self._last = step, gap
        return not self._departure.per_interval or (
            last is not None and gap > 0 and abs(gap - last[1]) <= 0.1 * gap
        )

    def _follow(self, scale: _Cells, prediction: _Cells, score: _Cells) -> None:
        departure, streak = self._departure, self._streak
        up, down = np.zeros(len(score), bool), np.zeros(len(score), bool)
        far = np.flatnonzero(np.abs(score) > departure.spreads)
        if len(far):  # the others need not be compared with the whole window
            beyond = self._trend.beyond(far, scale[far])
            least = np.log1p(departure.share) if departure.log else departure.share * np.abs(prediction[far])
            up[far] = (score[far] > 0) & (beyond > least)
            down[far] = (score[far] < 0) & (beyond < -least)
        up &= departure.direction != "down"
        down &= departure.direction != "up"
        streak[:] = np.where(up, np.maximum(streak, 0) + 1, np.where(down, np.minimum(streak, 0) - 1, 0))

    def _shown(self, values: _Cells, scale: _Cells, prediction: _Cells, score: _Cells) -> Shown:
        departure = self._departure
        spread = np.abs(scale - prediction) / np.maximum(np.abs(score), 1e-12) * departure.spreads
        low, high = prediction - spread, prediction + spread
        if departure.log:
            low, high = np.exp(low), np.exp(high)
        shown: list[tuple[float, Shown]] = []
        begin = 0
        for metric, shape in self._shapes.items():
            part = slice(begin, begin := begin + int(np.prod(shape)))
            cells, own, strength = (
                array[part].reshape(shape) for array in (np.abs(self._streak), values, np.abs(score))
            )
            cells = _of_whole_layers(cells >= self._rule.samples, np.isfinite(own), self._rule.heads)
            size = float(np.median(strength[cells])) if cells.any() else 0.0
            ends = low[part].reshape(shape), high[part].reshape(shape)
            shown.append((size, Shown(metric, cells, own, *ends)))
        most = max(shown, key=lambda one: one[0])[1]
        others = tuple(one.metric for _, one in shown if one is not most and one.cells.any())
        return most._replace(others=others, holds=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "trend": self._trend.state_dict(), "streak": self._streak, "last": self._last,
            "shapes": {name: list(shape) for name, shape in self._shapes.items()},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._trend.load_state_dict(state["trend"])
        self._streak = state["streak"]
        self._last = None if state["last"] is None else tuple(state["last"])
        self._shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}


class _NotFinite:
    """Layers whose activations were not finite."""

    def __init__(self, rule: Rule) -> None:
        self._metrics = rule.metrics

    def update(self, record: GeometryRecord, stack: str, arrays: _Arrays) -> Shown | None:
        if not any(metric in arrays for metric in self._metrics):
            return None
        size = next((array.shape[0] for array in arrays.values() if array.ndim), 0)
        listed = record.coverage.get("not_finite", {})
        layers = listed.get(stack, []) if isinstance(listed, dict) else []
        cells = np.isin(np.arange(size), layers)
        unknown = np.full(size, np.nan)
        return Shown("", cells, unknown, unknown, unknown, holds=bool(cells.any()))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def _of_whole_layers(cells: NDArray[np.bool_], defined: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """Keep the heads of those layers in which at least a share of the heads show it."""
    if cells.ndim == 1 or not cells.any():
        return cells
    layers: NDArray[np.bool_] = cells.sum(axis=1) >= np.maximum(share * defined.sum(axis=1), 1)
    return np.logical_and(cells, layers[:, None])


def _none(shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], _Cells, _Cells, _Cells]:
    unknown = np.full(shape, np.nan)
    return np.zeros(shape, bool), unknown, unknown, unknown
