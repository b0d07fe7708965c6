"""Pictures of the report as inline SVG, each matrix as a PNG with one pixel per number.

A matrix of 80 layers × 64 heads takes a few kB, stays sharp at any size, and reads in the dark and on paper.
Every function returns :class:`markupsafe.Markup`: titles and names are escaped here, so that templates insert
a picture as it is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lightning_geo.utils.colours import CATEGORICAL, diverging_colours, sequential_colours
from lightning_geo.utils.formatting import number

__all__ = ["bars", "classes", "evolution", "legend", "lines", "matrix"]

Array = NDArray[np.float64]

_POINTS = 300  # of a curve; the eye sees no more
_FIELD = (190, 150)  # pixels of a matrix: width, height
_CHART = (300.0, 130.0)  # pixels of a chart of curves: width, height
_LEFT = 52.0  # where that chart begins


def matrix(
    values: Array, title: str, low: float, high: float, *, diverging: bool = False, columns: str = "head",
    marked: NDArray[np.bool_] | None = None,
) -> Markup:  # fmt: skip
    """Return a matrix as a picture with its colour bar; cells without a value are hatched.

    Args:
        values: [layer, head]; layers run down, heads to the right.
        title: Line above.
        low: Value at the dark (or blue) end.
        high: Value at the other end.
        diverging: Whether to use colours around a light middle, for differences.
        columns: Name of the columns.
        marked: The same shape, True for cells with a dot.
    """
    values = values if values.ndim == 2 else values[:, None]
    rows, cols = values.shape
    cell = max(2.0, min(_FIELD[0] / cols, _FIELD[1] / rows, 22.0))
    wide, tall = max(cell, 12.0 if cols == 1 else 2.0) * cols, cell * rows
    body = _field(values, low, high, wide, tall, diverging)
    dots = [] if marked is None else _dots(marked.reshape(values.shape), wide / cols, cell)
    parts = [body, *dots, _row_names(rows, cell)]
    if cols > 1:
        parts += [_column_names(cols, wide / cols, tall), _below(wide, tall, columns)]
    parts.append(_bar(wide + 44, max(tall, 60), low, high, diverging))
    return _svg(title, wide + 92, tall + 52, parts)


def classes(labels: NDArray[np.int64], title: str, marked: NDArray[np.bool_] | None = None) -> Markup:
    """Return class numbers as a picture; negative cells have no class and are hatched.

    Args:
        labels: [layer, head]; layers run down, heads to the right. :func:`legend` explains the colours.
        title: Line above.
        marked: [layer, head], True for cells with a dot.
    """
    rows, cols = labels.shape
    cell = max(2.0, min(_FIELD[0] / cols, _FIELD[1] / rows, 22.0))
    wide, tall = cell * cols, cell * rows
    table = np.array([list(bytes.fromhex(colour[1:])) for colour in CATEGORICAL], np.uint8)
    opaque = np.where(labels >= 0, 255, 0).astype(np.uint8)
    body = _image(np.concatenate([table[labels.clip(0)], opaque[..., None]], axis=-1), wide, tall)
    dots = [] if marked is None else _dots(marked, cell, cell)
    names = [_row_names(rows, cell), _column_names(cols, cell, tall), _below(wide, tall, "head")]
    return _svg(title, wide + 46, tall + 52, [body, *dots, *names])


def legend(names: Sequence[str], title: str) -> Markup:
    """Return the colours of :func:`classes` with their meaning, one line per class.

    Args:
        names: One per class, in the order of their numbers; at most eight.
        title: Line above.
    """
    parts = []
    for index, (name, colour) in enumerate(zip(names, CATEGORICAL, strict=False)):
        y = 22 + 18 * index
        parts.append(_SQUARE.format(y=y, colour=colour))
        parts.append(_text("22", f"{y + 10}", name))
    return _svg(title, 190, 26 + 18 * len(names), parts)


def evolution(
    values: Array, steps: NDArray[np.int64], title: str, low: float, high: float, *, diverging: bool = False
) -> Markup:
    """Return [sample, layer] as a picture; layers run down, samples to the right."""
    thin = _thinned(len(values), _POINTS)
    shown = values[thin].T
    rows = len(shown)
    cell = max(2.0, min(_FIELD[1] / rows, 22.0))
    wide, tall = 300.0, cell * rows
    body = _field(shown, low, high, wide, tall, diverging)
    ends = [
        _text("34", f"{tall + 34:.0f}", f"step {steps[0]}"),
        _text(f"{34 + wide:.0f}", f"{tall + 34:.0f}", steps[-1], "e"),
    ]
    bar = _bar(wide + 44, max(tall, 60), low, high, diverging)
    return _svg(title, wide + 92, tall + 52, [body, _row_names(rows, cell), *ends, bar])


def lines(
    curves: Sequence[tuple[str, NDArray[np.int64], Array]],
    title: str,
    band: tuple[Array, Array] | None = None,
) -> Markup:
    """Return curves over steps, with a band around the first one if given; empty without any value.

    Args:
        curves: Name, steps and values of each; at most six are drawn.
        title: Line above.
        band: Lower and upper edge at the first curve's steps.
    """
    curves = curves[:6]
    every = np.concatenate([values for _, _, values in curves] + (list(band) if band else []))
    if not np.isfinite(every).any():
        return Markup("")
    axes = _Axes.around(every, [steps for _, steps, _ in curves])
    parts = [axes.drawn()]
    if band:
        steps = curves[0][1]
        edge = axes.points(steps, band[0]), axes.points(steps[::-1], band[1][::-1])
        parts.append(Markup('<polygon class="band" points="{} {}"/>').format(*edge))
    for index, (_, steps, values) in enumerate(curves):
        points = axes.points(steps, values)
        parts.append(Markup('<polyline class="l{}" points="{}"/>').format(index, points))
    named = [name for name, _, _ in curves] if len(curves) > 1 else []
    for index, name in enumerate(named):
        y = _CHART[1] + 54 + 15 * index
        parts.append(Markup('<path class="l{}" d="M{} {}h18"/>').format(index, _LEFT, y - 4))
        parts.append(_text(f"{_LEFT + 24}", f"{y}", name))
    return _svg(title, _LEFT + _CHART[0] + 12, _CHART[1] + 44 + 15 * len(named), parts)


class _Axes(NamedTuple):
    """The scales of a chart of curves: steps and values to pixels."""

    low: float
    high: float
    first: int
    last: int

    @classmethod
    def around(cls, values: Array, steps: Sequence[NDArray[np.int64]]) -> _Axes:
        """Axes that hold all values and steps."""
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        if not high > low:
            low, high = low - 0.5, high + 0.5
        return cls(low, high, min(int(s[0]) for s in steps), max(int(s[-1]) for s in steps))

    def drawn(self) -> Markup:
        """The two lines, with the numbers at their ends."""
        (wide, tall), left = _CHART, _LEFT
        return _joined(
            [
                Markup('<path class="axis" d="M{} 22V{}H{}"/>').format(left, 22 + tall, left + wide),
                _text(f"{left - 4}", "26", number(self.high), "e"),
                _text(f"{left - 4}", f"{22 + tall}", number(self.low), "e"),
                _text(f"{left}", f"{tall + 36}", f"step {self.first}"),
                _text(f"{left + wide}", f"{tall + 36}", self.last, "e"),
            ]
        )

    def points(self, steps: NDArray[np.int64], values: Array) -> str:
        """The points of a curve as SVG wants them; a sample without a value has none."""
        thin = _thinned(len(steps), _POINTS)
        x = _LEFT + (steps[thin] - self.first) / max(self.last - self.first, 1) * _CHART[0]
        y = 22 + (self.high - values[thin]) / (self.high - self.low) * _CHART[1]
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b))


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
            _text("50", f"{y + height - 5}", f"layer {layer}", "e"),
            _BAR.format(y=y + 1, long=long, height=height - 4),
            _text(f"{62 + long:.0f}", f"{y + height - 5}", shown),
        ]
    return _svg(title, 420, 26 + height * len(values), parts)


# -- parts of pictures


_SVG = Markup(
    '<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
    'aria-label="{title}"><text x="4" y="13" class="t">{title}</text>{body}</svg>'
)
_DOT = Markup('<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')
_SQUARE = Markup('<rect x="4" y="{y}" width="12" height="12" fill="{colour}"/>')
_BAR = Markup('<rect class="bar" x="56" y="{y}" width="{long:.1f}" height="{height}"/>')


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _svg(title: str, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    return _SVG.format(title=title, width=width, height=height, body=_joined(parts))


def _text(x: str, y: str, content: object, kind: str = "") -> Markup:
    style = Markup(' class="{}"').format(kind) if kind else Markup("")
    return Markup('<text x="{}" y="{}"{}>{}</text>').format(x, y, style, content)


def _below(wide: float, tall: float, name: str) -> Markup:
    """Label the columns below their numbers."""
    return _text(f"{34 + wide / 2:.0f}", f"{tall + 46:.0f}", name, "m")


def _dots(marked: NDArray[np.bool_], wide: float, tall: float) -> list[Markup]:
    radius = min(wide / 5, tall / 5, 3.5)
    places = np.argwhere(marked) + 0.5
    return [_DOT.format(x=34 + col * wide, y=20 + row * tall, radius=radius) for row, col in places]


def _field(values: Array, low: float, high: float, wide: float, tall: float, diverging: bool) -> Markup:
    return _image(_coloured(values, low, high, diverging), wide, tall)


def _image(pixels: NDArray[np.uint8], wide: float, tall: float) -> Markup:
    """One pixel for each cell, hatched where they are transparent."""
    box = Markup('x="34" y="20" width="{:.1f}" height="{:.1f}"').format(wide, tall)
    hatched = "" if pixels[..., 3].all() else Markup('<rect {} fill="url(#absent)"/>').format(box)
    picture = '{}<image {} preserveAspectRatio="none" class="px" href="{}"/>'
    return Markup(picture).format(hatched, box, _png(pixels))


def _coloured(values: Array, low: float, high: float, diverging: bool) -> NDArray[np.uint8]:
    table = diverging_colours() if diverging else sequential_colours()
    share = (np.nan_to_num(values, nan=low) - low) / ((high - low) or 1.0)
    cells = table[(share.clip(0, 1) * (len(table) - 1)).round().astype(int)]
    opaque = np.where(np.isfinite(values), 255, 0).astype(np.uint8)
    return np.concatenate([cells, opaque[..., None]], axis=-1)


def _png(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _bar(left: float, tall: float, low: float, high: float, diverging: bool) -> Markup:
    """The colour bar: its ramp, and the values at both ends and in the middle."""
    ramp = _png(_coloured(np.linspace(1, 0, 60)[:, None], 0.0, 1.0, diverging))
    image = '<image x="{:.0f}" y="20" width="10" height="{:.0f}" preserveAspectRatio="none" href="{}"/>'
    values = (
        _text(
            f"{left + 14:.0f}",
            f"{24 + (1 - share) * (tall - 4):.0f}",
            number(low + share * (high - low), signed=diverging),
        )
        for share in (0.0, 0.5, 1.0)
    )
    return _joined([Markup(image).format(left, tall, ramp), *values])


def _row_names(rows: int, cell: float) -> Markup:
    return _joined(
        _text("30", f"{20 + (row + 0.5) * cell + 3.5:.1f}", row, "e")
        for row in range(0, rows, _label_interval(rows, cell, 11))
    )


def _column_names(cols: int, cell: float, tall: float) -> Markup:
    return _joined(
        _text(f"{34 + (col + 0.5) * cell:.1f}", f"{tall + 32:.0f}", col, "m")
        for col in range(0, cols, _label_interval(cols, cell, 16))
    )


def _label_interval(count: int, cell: float, room: float) -> int:
    """Every how many rows or columns a label has ``room`` pixels."""
    steps = (1, 2, 4, 8, 16, 32, 64, 128, 256, count)
    return next(step for step in steps if step * cell >= room or step >= count)


def _thinned(count: int, most: int) -> NDArray[np.intp]:
    """Indices of at most so many, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))
