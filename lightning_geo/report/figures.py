"""Pictures of matrices as inline SVG, each matrix as a PNG with one pixel per number.

A matrix of 80 layers × 64 heads takes a few kB, stays sharp at any size, and reads in the dark and on paper.
The report and the notebook draw with the functions of this module and of :mod:`.charts` alone. Each returns
:class:`markupsafe.Markup`: titles and names are escaped here, so that templates insert a picture as it is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lightning_geo.report.svg import joined, svg, text, thinned
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.colours import CATEGORICAL, diverging_colours, sequential_colours
from lightning_geo.utils.formatting import number

__all__ = ["classes", "evolution", "legend", "matrix"]


_FIELD = (190, 150)  # pixels of a matrix: width, height


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
    return svg(title, wide + 92, tall + 52, parts)


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
    return svg(title, wide + 46, tall + 52, [body, *dots, *names])


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
        parts.append(text(22, y + 10, name))
    return svg(title, 190, 26 + 18 * len(names), parts)


def evolution(
    values: Array, steps: NDArray[np.int64], title: str, low: float, high: float, *, diverging: bool = False
) -> Markup:
    """Return [sample, layer] as a picture; layers run down, samples to the right."""
    thin = thinned(len(values))
    shown = values[thin].T
    rows = len(shown)
    cell = max(2.0, min(_FIELD[1] / rows, 22.0))
    wide, tall = 300.0, cell * rows
    body = _field(shown, low, high, wide, tall, diverging)
    ends = [
        text(34, tall + 34, f"step {steps[0]}"),
        text(34 + wide, tall + 34, steps[-1], "e"),
    ]
    bar = _bar(wide + 44, max(tall, 60), low, high, diverging)
    return svg(title, wide + 92, tall + 52, [body, _row_names(rows, cell), *ends, bar])


# -- parts of pictures


_DOT = Markup('<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')
_SQUARE = Markup('<rect x="4" y="{y}" width="12" height="12" fill="{colour}"/>')


def _below(wide: float, tall: float, name: str) -> Markup:
    """Label the columns below their numbers."""
    return text(34 + wide / 2, tall + 46, name, "m")


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
        text(
            left + 14,
            24 + (1 - share) * (tall - 4),
            number(low + share * (high - low), signed=diverging, digits=3),
        )
        for share in (0.0, 0.5, 1.0)
    )
    return joined([Markup(image).format(left, tall, ramp), *values])


def _row_names(rows: int, cell: float) -> Markup:
    return joined(
        text(30, 20 + (row + 0.5) * cell + 3.5, row, "e")
        for row in range(0, rows, _label_interval(rows, cell, 11))
    )


def _column_names(cols: int, cell: float, tall: float) -> Markup:
    return joined(
        text(34 + (col + 0.5) * cell, tall + 32, col, "m")
        for col in range(0, cols, _label_interval(cols, cell, 16))
    )


def _label_interval(count: int, cell: float, room: float) -> int:
    """Every how many rows or columns a label has ``room`` pixels."""
    steps = (1, 2, 4, 8, 16, 32, 64, 128, 256, count)
    return next(step for step in steps if step * cell >= room or step >= count)
