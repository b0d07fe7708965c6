"""Pictures of the report: SVG with its text as text, and one pixel of a small PNG for each number.

That keeps a matrix of 80 layers × 64 heads at a few kB, sharp at any size, readable in the dark and on
paper.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from lightning_geo.utils.colours import CATEGORICAL, diverging_colours, sequential_colours
from lightning_geo.utils.formatting import number

__all__ = ["bars", "classes", "evolution", "legend", "lines", "matrix"]

Array = NDArray[np.float64]

_POINTS = 300  # of a curve; more are not seen
_FIELD = (190, 150)  # pixels of a matrix


def matrix(
    values: Array, title: str, low: float, high: float, *, diverging: bool = False, columns: str = "head"
) -> str:
    """Return [layer, head] as a picture with its colour bar; what is NaN is hatched.

    Args:
        values: Layers run down, heads to the right.
        title: Line above.
        low: Value at the dark (or blue) end.
        high: Value at the other end.
        diverging: Colours around a middle, for differences.
        columns: What the columns are.
    """
    values = values if values.ndim == 2 else values[:, None]
    rows, cols = values.shape
    cell = max(2.0, min(_FIELD[0] / cols, _FIELD[1] / rows, 22.0))
    wide, tall = max(cell, 12.0 if cols == 1 else 2.0) * cols, cell * rows
    body = _field(values, low, high, wide, tall, diverging)
    names = _row_names(rows, cell) + (_column_names(cols, wide / cols, tall) if cols > 1 else "")
    under = (
        f'<text x="{34 + wide / 2:.0f}" y="{tall + 46:.0f}" class="m">{escape(columns)}</text>'
        if cols > 1
        else ""
    )
    return _svg(
        title,
        wide + 92,
        tall + 52,
        body + names + under + _bar(wide + 44, max(tall, 60), low, high, diverging),
    )


def classes(labels: NDArray[np.int64], title: str, marked: NDArray[np.bool_] | None = None) -> str:
    """Return [layer, head] of class numbers as a picture; what is negative has none and is hatched.

    Args:
        labels: Layers run down, heads to the right; :func:`legend` says what the colours are.
        title: Line above.
        marked: [layer, head], cells to put a dot on.
    """
    rows, cols = labels.shape
    cell = max(2.0, min(_FIELD[0] / cols, _FIELD[1] / rows, 22.0))
    wide, tall = cell * cols, cell * rows
    table = np.array([list(bytes.fromhex(colour[1:])) for colour in CATEGORICAL], np.uint8)
    opaque = np.where(labels >= 0, 255, 0).astype(np.uint8)
    body = _image(np.concatenate([table[labels.clip(0)], opaque[..., None]], axis=-1), wide, tall)
    for row, col in np.argwhere(marked) if marked is not None else ():
        x, y = 34 + (col + 0.5) * cell, 20 + (row + 0.5) * cell
        body += f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{min(cell / 5, 3.5):.1f}"/>'
    names = _row_names(rows, cell) + _column_names(cols, cell, tall)
    under = f'<text x="{34 + wide / 2:.0f}" y="{tall + 46:.0f}" class="m">head</text>'
    return _svg(title, wide + 46, tall + 52, body + names + under)


def legend(names: Sequence[str], title: str) -> str:
    """Return what the colours of :func:`classes` mean, a line for each class.

    Args:
        names: Of the classes, in the order of their numbers; at most eight.
        title: Line above.
    """
    parts = []
    for index, (name, colour) in enumerate(zip(names, CATEGORICAL, strict=False)):
        y = 22 + 18 * index
        parts.append(f'<rect x="4" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="22" y="{y + 10}">{escape(name)}</text>')
    return _svg(title, 190, 26 + 18 * len(names), "".join(parts))


def evolution(
    values: Array, steps: NDArray[np.int64], title: str, low: float, high: float, *, diverging: bool = False
) -> str:
    """Return [sample, layer] as a picture: layers run down, samples to the right."""
    thin = _thinned(len(values), _POINTS)
    shown = values[thin].T
    rows = len(shown)
    cell = max(2.0, min(_FIELD[1] / rows, 22.0))
    wide, tall = 300.0, cell * rows
    body = _field(shown, low, high, wide, tall, diverging)
    ends = (
        f'<text x="34" y="{tall + 34:.0f}">step {steps[0]}</text>'
        f'<text x="{34 + wide:.0f}" y="{tall + 34:.0f}" class="e">{steps[-1]}</text>'
    )
    bar = _bar(wide + 44, max(tall, 60), low, high, diverging)
    return _svg(title, wide + 92, tall + 52, body + _row_names(rows, cell) + ends + bar)


def lines(
    curves: Sequence[tuple[str, NDArray[np.int64], Array]],
    title: str,
    band: tuple[Array, Array] | None = None,
) -> str:
    """Return curves over steps, at most six; a band around the first one if there is any.

    Args:
        curves: Name, steps and values of each.
        title: Line above.
        band: Lower and upper edge, at the first curve's steps.
    """
    curves = curves[:6]
    every = np.concatenate([values for _, _, values in curves] + (list(band) if band else []))
    if not np.isfinite(every).any():
        return ""
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    first, last = min(int(s[0]) for _, s, _ in curves), max(int(s[-1]) for _, s, _ in curves)
    wide, tall, left = 300.0, 130.0, 52.0

    def points(steps: NDArray[np.int64], values: Array) -> str:
        thin = _thinned(len(steps), _POINTS)
        x = left + (steps[thin] - first) / max(last - first, 1) * wide
        y = 22 + (high - values[thin]) / (high - low) * tall
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b))

    parts = [
        f'<path class="axis" d="M{left} 22V{22 + tall}H{left + wide}"/>',
        f'<text x="{left - 4}" y="26" class="e">{number(high)}</text>',
        f'<text x="{left - 4}" y="{22 + tall}" class="e">{number(low)}</text>',
        f'<text x="{left}" y="{tall + 36}">step {first}</text>',
        f'<text x="{left + wide}" y="{tall + 36}" class="e">{last}</text>',
    ]
    if band:
        steps = curves[0][1]
        edge = points(steps, band[0]), points(steps[::-1], band[1][::-1])
        parts.append(f'<polygon class="band" points="{edge[0]} {edge[1]}"/>')
    for index, (_, steps, values) in enumerate(curves):
        drawn = points(steps, values)
        parts.append(f'<polyline class="l{index}" points="{drawn}"/>')
    if len(curves) > 1:
        for index, (name, _, _) in enumerate(curves):
            y = tall + 54 + 15 * index
            parts.append(f'<path class="l{index}" d="M{left} {y - 4}h18"/>')
            parts.append(f'<text x="{left + 24}" y="{y}">{escape(name)}</text>')
    legend = 15 * len(curves) if len(curves) > 1 else 0
    return _svg(title, left + wide + 12, tall + 44 + legend, "".join(parts))


def bars(values: Array, title: str, unit: str = "") -> str:
    """Return one bar for each layer, with its number."""
    height = 18 if len(values) <= 30 else 12
    top = float(np.nanmax(values, initial=0.0)) or 1.0
    parts = []
    for layer, value in enumerate(values):
        y = 22 + layer * height
        shown = f"{value:.2f}{unit}" if np.isfinite(value) else "no value"
        long = 300 * float(value) / top if np.isfinite(value) else 0.0
        parts.append(
            f'<text x="50" y="{y + height - 5}" class="e">layer {layer}</text>'
            f'<rect class="bar" x="56" y="{y + 1}" width="{long:.1f}" height="{height - 4}"/>'
            f'<text x="{62 + long:.0f}" y="{y + height - 5}">{shown}</text>'
        )
    return _svg(title, 420, 26 + height * len(values), "".join(parts))


def _svg(title: str, width: float, height: float, body: str) -> str:
    label = escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{label}"><text x="4" y="13" class="t">{label}</text>{body}</svg>'
    )


def _field(values: Array, low: float, high: float, wide: float, tall: float, diverging: bool) -> str:
    return _image(_coloured(values, low, high, diverging), wide, tall)


def _image(pixels: NDArray[np.uint8], wide: float, tall: float) -> str:
    """One pixel for each cell, hatched where they are transparent."""
    box = f'x="34" y="20" width="{wide:.1f}" height="{tall:.1f}"'
    hatched = "" if pixels[..., 3].all() else f'<rect {box} fill="url(#absent)"/>'
    return f'{hatched}<image {box} preserveAspectRatio="none" class="px" href="{_png(pixels)}"/>'


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


def _bar(left: float, tall: float, low: float, high: float, diverging: bool) -> str:
    ramp = _png(_coloured(np.linspace(1, 0, 60)[:, None], 0.0, 1.0, diverging))
    texts = "".join(
        f'<text x="{left + 14:.0f}" y="{24 + (1 - share) * (tall - 4):.0f}">'
        f"{number(low + share * (high - low), signed=diverging)}</text>"
        for share in (0.0, 0.5, 1.0)
    )
    box = f'x="{left:.0f}" y="20" width="10" height="{tall:.0f}"'
    return f'<image {box} preserveAspectRatio="none" href="{ramp}"/>{texts}'


def _row_names(rows: int, cell: float) -> str:
    every = next(
        step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, rows) if step * cell >= 11 or step >= rows
    )
    return "".join(
        f'<text x="30" y="{20 + (row + 0.5) * cell + 3.5:.1f}" class="e">{row}</text>'
        for row in range(0, rows, every)
    )


def _column_names(cols: int, cell: float, tall: float) -> str:
    every = next(
        step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, cols) if step * cell >= 16 or step >= cols
    )
    return "".join(
        f'<text x="{34 + (col + 0.5) * cell:.1f}" y="{tall + 32:.0f}" class="m">{col}</text>'
        for col in range(0, cols, every)
    )


def _thinned(count: int, most: int) -> NDArray[np.intp]:
    """Indices of at most so many, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))
