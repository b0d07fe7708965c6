"""Charts as inline SVG: curves over steps, and bars. Everything in them is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lightning_geo.report.svg import joined, svg, text, thinned
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.formatting import number

__all__ = ["Curve", "Event", "balance", "bars", "lines", "sparkline", "timeline"]

#: Name, steps and values.
Curve = tuple[str, NDArray[np.int64], Array]

_CHART = (300.0, 130.0)  # pixels of a chart of curves: width, height
_TIMELINE = (480.0, 150.0)  # of the loss with its events; narrow pages shrink it little
_LEFT = 52.0  # where a chart begins
_CURVES = 6  # have a look of their own

_AXIS = Markup('<path class="axis" d="M{} 22V{}H{}"/>')
_GRID = Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>')
_LINE = Markup('<polyline class="l{}" points="{}"/>')
_KEY = Markup('<path class="l{}" d="M{:.0f} {:.0f}h18"/>')
_BAR = Markup('<rect class="{kind}" x="{x:.1f}" y="{y}" width="{long:.1f}" height="{height}"/>')
_EVENT = Markup('<path class="event {}" d="M{:.1f} 22V{:.1f}"/>')
_EVALUATION = Markup(
    '<circle class="evaluation l{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>'
)
_SPARK = Markup(
    '<svg class="lg" viewBox="0 0 120 26" width="120" height="26" role="img" aria-label="{}">{}</svg>'
)


def lines(curves: Sequence[Curve], title: str, band: tuple[Array, Array] | None = None) -> Markup:
    """Return curves over steps, with a band around the first one if given; empty without any value.

    Args:
        curves: Name, steps and values of each; at most six are drawn.
        title: Line above.
        band: Lower and upper edge at the first curve's steps.
    """
    curves = curves[:_CURVES]
    axes = _Axes.around(curves, _CHART, list(band) if band else [])
    if axes is None:
        return Markup("")
    parts = [axes.drawn()]
    if band:
        steps = curves[0][1]
        edge = axes.points(steps, band[0]), axes.points(steps[::-1], band[1][::-1])
        parts.append(Markup('<polygon class="band" points="{} {}"/>').format(*edge))
    parts += [_LINE.format(index, axes.points(*curve[1:])) for index, curve in enumerate(curves)]
    named = [name for name, _, _ in curves] if len(curves) > 1 else []
    parts.append(_named(named, _CHART[1] + 54))
    return svg(title, _LEFT + _CHART[0] + 12, _CHART[1] + 44 + 15 * len(named), parts)


class Event(NamedTuple):
    """Something at one step of a run.

    Args:
        step: The step.
        label: A few characters above it.
        severity: ``note``, ``warning`` or ``critical``: its colour.
    """

    step: int
    label: str
    severity: str


def timeline(
    curves: Sequence[Curve],
    title: str,
    events: Sequence[Event] = (),
    evaluations: Sequence[tuple[int, NDArray[np.int64], Array, str]] = (),
) -> Markup:
    """Return a run's loss with what happened on the way; empty without any value.

    Args:
        curves: Name, steps and values of each; at most six are drawn.
        title: Line above.
        events: Each is a vertical line at its step.
        evaluations: Number of the curve, and steps, values and name of what was evaluated there: circles on
            the curve, which say the value to a pointer.
    """
    curves = curves[:_CURVES]
    axes = _Axes.around(curves, _TIMELINE)
    if axes is None:
        return Markup("")
    # the last evaluation comes after the last logged loss, and a finding may come before the first
    at = [*(event.step for event in events), *(int(step) for _, steps, _, _ in evaluations for step in steps)]
    axes = axes._replace(first=min([axes.first, *at]), last=max([axes.last, *at]))
    wide, tall = _TIMELINE
    parts = [axes.drawn()]
    taken = -math.inf
    for event in sorted(events):
        x = axes.x(event.step)
        parts.append(_EVENT.format(event.severity, x, 22 + tall))
        if x - taken > 6 * len(event.label) + 6:  # labels that would overlap give way
            parts.append(text(x + 3, 32, event.label, f"strong {event.severity}"))
            taken = x
    parts += [_LINE.format(index, axes.points(*curve[1:])) for index, curve in enumerate(curves)]
    for index, steps, values, name in evaluations:
        if index < len(curves):
            parts += axes.marked(curves[index], index, steps, values, name)
    named = [name for name, _, _ in curves] if len(curves) > 1 else []
    parts.append(_named(named, tall + 54))
    return svg(title, _LEFT + wide + 12, tall + 44 + 15 * len(named), parts)


def sparkline(values: Array, title: str) -> Markup:
    """Return a curve without axes, as high as two lines of text; empty without any value.

    Args:
        values: [sample].
        title: For readers who cannot see it.
    """
    axes = _Axes.around([("", np.arange(len(values)), values)], (112.0, 18.0))
    if axes is None:
        return Markup("")
    known = np.flatnonzero(np.isfinite(values))
    kept = known[thinned(len(known))]
    x, y = 4 + kept / max(len(values) - 1, 1) * 112, 4 + axes.y(values[kept]) - 22
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    end = Markup('<circle class="end" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(x[-1], y[-1])
    return _SPARK.format(title, _LINE.format(0, points) + end)


def bars(values: Array, title: str, unit: str = "") -> Markup:
    """Return one bar for each layer, with its number."""
    height = 18 if len(values) <= 30 else 12
    top = float(np.nanmax(values, initial=0.0)) or 1.0
    parts = []
    for layer, value in enumerate(values):
        y = 22 + layer * height
        shown = f"{value:.2f}{unit}" if np.isfinite(value) else "no value"
        long = 300 * float(value) / top if np.isfinite(value) else 0.0
        parts += [
            text(50, y + height - 5, f"layer {layer}", "e"),
            _BAR.format(kind="bar", x=56, y=y + 1, long=long, height=height - 4),
            text(62 + long, y + height - 5, shown),
        ]
    return svg(title, 420, 26 + height * len(values), parts)


def balance(rows: Sequence[tuple[str, float]], title: str, ends: tuple[str, str]) -> Markup:
    """Return bars to the left for negative values and to the right for positive ones, on one scale.

    Args:
        rows: Name and value of each bar.
        title: Line above.
        ends: What the left and the right side mean.
    """
    middle, side = 340.0, 130.0
    top = max((abs(value) for _, value in rows if np.isfinite(value)), default=0.0) or 1.0
    height = 26 + 16 + 18 * len(rows)
    parts = [
        text(middle - 6, 30, f"← {ends[0]}", "e"),
        text(middle + 6, 30, f"{ends[1]} →"),
        Markup('<path class="axis" d="M{} 36V{}"/>').format(middle, height),
    ]
    for place, (name, value) in enumerate(rows):
        y, long = 38 + 18 * place, side * abs(value) / top
        left, kind = value < 0, "against" if value < 0 else "bar"
        parts += [
            text(4, y + 12, name),
            _BAR.format(kind=kind, x=middle - long * left, y=y + 1, long=long, height=14),
            text(middle + long * (-1 if left else 1) + (-4 if left else 4), y + 12,
                 number(value, signed=True, digits=3), "e" if left else ""),
        ]  # fmt: skip
    return svg(title, middle + side + 70, height + 4, parts)


def _named(names: Sequence[str], top: float) -> Markup:
    """The looks of curves with their names, one line each."""
    return joined(
        _KEY.format(index, _LEFT, top - 4 + 15 * index) + text(_LEFT + 24, top + 15 * index, name)
        for index, name in enumerate(names)
    )


class _Axes(NamedTuple):
    """The scales of a chart of curves: steps and values to pixels."""

    low: float
    high: float
    first: int
    last: int
    size: tuple[float, float]

    @classmethod
    def around(
        cls, curves: Sequence[Curve], size: tuple[float, float], more: Sequence[Array] = ()
    ) -> _Axes | None:
        """Axes that hold all values and steps; None where there is no value."""
        every = np.concatenate([*(values for _, _, values in curves), *more, np.empty(0)])
        if not np.isfinite(every).any():
            return None
        low, high = float(np.nanmin(every)), float(np.nanmax(every))
        if not high > low:
            low, high = low - 0.5, high + 0.5
        known = [steps for _, steps, _ in curves if len(steps)]
        return cls(low, high, min(int(s[0]) for s in known), max(int(s[-1]) for s in known), size)

    def drawn(self) -> Markup:
        """Both lines, round numbers with a grid, and the first and the last step."""
        (wide, tall), left = self.size, _LEFT
        parts = [_AXIS.format(left, 22 + tall, left + wide)]
        for value in _round(self.low, self.high, 4):
            height = float(self.y(np.float64(value)))
            parts += [
                _GRID.format(left, height, left + wide),
                text(left - 4, height + 4, number(value, digits=3), "e"),
            ]
        for step in _round(self.first, self.last, 6 if wide > 400 else 4):
            if step == int(step):
                parts.append(text(self.x(step), tall + 36, f"{int(step)}", "m"))
        parts.append(text(left + wide, tall + 36, "step", "e") if self.first == self.last else Markup(""))
        return joined(parts)

    def x(self, step: float) -> float:
        """The pixel of a step."""
        return _LEFT + (step - self.first) / max(self.last - self.first, 1) * self.size[0]

    def y(self, values: Array | np.float64) -> Array:
        """The pixels of values."""
        return np.asarray(22 + (self.high - values) / (self.high - self.low) * self.size[1])

    def points(self, steps: NDArray[np.int64], values: Array) -> str:
        """The points of a curve as SVG wants them; a sample without a value has none."""
        thin = thinned(len(steps))
        pairs = zip(steps[thin], self.y(values[thin]), strict=True)
        return " ".join(f"{self.x(step):.1f},{y:.1f}" for step, y in pairs if np.isfinite(y))

    def marked(
        self, curve: Curve, index: int, steps: NDArray[np.int64], values: Array, name: str
    ) -> list[Markup]:
        """Circles on a curve, at most thirty, each with a value of its own."""
        known = np.isfinite(curve[2])
        if not known.any():
            return []
        heights = self.y(np.interp(steps, curve[1][known], curve[2][known]))
        return [
            _EVALUATION.format(
                index,
                self.x(steps[i]),
                heights[i],
                f"{name} {number(float(values[i]), digits=3)} at step {steps[i]}",
            )
            for i in thinned(len(steps), 30)
        ]


def _round(low: float, high: float, most: int) -> list[float]:
    """Round numbers within an interval: three or more, and about as many as asked for."""
    if not high > low or not np.isfinite([low, high]).all():
        return [low]
    power = 10.0 ** math.floor(math.log10(high - low))
    for unit in (power, power / 2, power / 5, power / 10):
        first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
        if last - first >= 2:
            # every second of too many, multiples of the larger unit
            every = 1 if last - first < most else 2
            return [k * unit for k in range(first, last + 1) if k % every == 0]
    return [low, high]
