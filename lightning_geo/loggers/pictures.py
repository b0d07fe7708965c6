"""Layer × head pictures of a metric, drawn with numpy and Pillow in a few milliseconds.

Layers run down and heads to the right, both counted from 0. All pictures of a metric in a run have one
scale, see :mod:`.picture_scale`. Cells beyond it have a dot, and the bar's number shows that values go
further; the line under the title gives the range of the values.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.loggers.picture_scale import PictureScale, PictureScales
from lightning_geo.loggers.tags import group, headlines
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.colours import SHADES, sequential_colours

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PictureSchedule", "draw", "padded", "pictures", "png"]

_PAPER = 255
_HATCH = (_PAPER - 5, _PAPER - 1)  # stripe, ground
# TensorBoard scales pictures to 350 pixels of width (Images) or 215 of height (Time Series) without
# smoothing, which breaks text; both show this size unscaled
_PAGE = (350, 215)
_FIELD = (232, 142)  # pixels for the matrix; a cell takes whole ones
_CELL = 58  # pixels per cell at most
_MARKED = 8  # pixels of a cell from which on a dot marks that its value is beyond the scale
_DOT = 3
_PICTURES = 10  # TensorBoard keeps as many per tag


class PictureSchedule:
    """The samples that get pictures: ten over the run.

    TensorBoard keeps ten pictures per tag, a random ten of a longer series. If the length of the run is
    known, pictures are drawn at every ninth of it, otherwise whenever the step has doubled. The first sample
    of a session and the last of the run always get pictures. All loggers of a session share one schedule.

    Args:
        max_steps: Length of the run in optimizer steps; ``None``, -1 or infinite if unknown.

    Example:
        >>> schedule = PictureSchedule(max_steps=900)
        >>> [step for step in range(0, 900, 50) if schedule.due(step)]
        [0, 100, 200, 300, 400, 500, 600, 700, 800]
    """

    def __init__(self, max_steps: float | None = None) -> None:
        self._max_steps = max_steps if max_steps and 0 < max_steps < math.inf else None
        self._slot = -1
        #: the last step with pictures, for the loggers behind the first one
        self._drawn: int | None = None

    def _slot_of(self, step: int) -> int:
        if self._max_steps:
            return int(step * (_PICTURES - 1) // self._max_steps)
        return (step + 1).bit_length()

    def is_due(self, step: int, *, final: bool = False) -> bool:
        """Return whether the sample at ``step`` gets pictures."""
        return final or step == self._drawn or self._slot_of(step) > self._slot

    def due(self, step: int, *, final: bool = False) -> bool:
        """Return whether the sample at ``step`` gets pictures, and count it as drawn if so."""
        due = self.is_due(step, final=final)
        if due:
            self._slot, self._drawn = max(self._slot, self._slot_of(step)), step
        return due


def pictures(
    record: GeometryRecord, name: str = "geometry", scales: PictureScales | None = None
) -> Iterator[tuple[str, Image]]:
    """Yield tag and picture of every headline metric that has two axes.

    A metric of layers shows its stages side by side; one without stages has no picture, only charts.

    Args:
        record: One sample.
        name: The monitor's name.
        scales: Those of the run's earlier pictures; ``None`` for none.
    """
    scales = PictureScales() if scales is None else scales
    drawn: set[tuple[str, str]] = set()
    for stack, metric, spec, values in headlines(record):
        columns, label = None, metric
        if values.ndim == 1:
            if not spec.parts or (stack, spec.name) in drawn:
                continue
            drawn.add((stack, spec.name))
            arrays = record.stacks[stack]
            columns = tuple(part for part in spec.parts if f"{spec.name}.{part}" in arrays)
            values, label = np.stack([arrays[f"{spec.name}.{part}"] for part in columns], axis=1), spec.name
        title = f"{stack}/{label}" if len(record.stacks) > 1 else label
        tag = group(record, name, spec.family, stack, label)
        yield tag, draw(values, spec, title, record.step, columns, scales.of(tag, values, spec))


def draw(
    values: NDArray[Any],
    spec: MetricSpec,
    title: str,
    step: int,
    columns: tuple[str, ...] | None = None,
    scale: PictureScale | None = None,
    across: str = "",
) -> Image:
    """Draw a matrix with numbered axes, a title and a colour bar.

    Args:
        values: [layer, head]; cells that are not finite are hatched.
        spec: The metric.
        title: First line.
        step: Optimizer step, for the second line.
        columns: Names of the columns in place of head numbers.
        scale: The scale of its colours; ``None`` for that of a run that begins with these values.
        across: Title of the columns' axis; by default ``stage``, or ``head`` where they have no names.
            Columns called ``step`` are labelled where there is room.

    Returns:
        A picture with a palette (mode ``P``), 4 to 8 kB as PNG.
    """
    from PIL import Image as image

    scale = PictureScales().of("", values, spec) if scale is None else scale
    least, most = _extent(values)
    rows, cols = values.shape
    wide, tall = (max(min(room // count, _CELL), 2) for room, count in zip(_FIELD, (cols, rows), strict=True))
    field = _enlarged((scale.shares(values) * (SHADES - 1)).round().astype(np.uint8), tall, wide)
    if min(tall, wide) >= _MARKED:
        _mark(field, values, scale, tall, wide)
    absent = ~np.isfinite(values)
    if absent.any():
        diagonal = np.add.outer(np.arange(field.shape[0]), np.arange(field.shape[1])) % 6 < 2
        field = np.where(_enlarged(absent, tall, wide), np.where(diagonal, *_HATCH), field).astype(np.uint8)

    left, top = 44, 40
    bottom, right = top + field.shape[0], left + field.shape[1]
    bar_height = max(field.shape[0], 80)
    bar_left, bar_right = right + 14, right + 26
    text = _Text((max(bar_right + 48, _PAGE[0]), max(bottom + 33, _PAGE[1])))
    text.put((8, 2), title, 15)
    used = "no value" if math.isnan(least) else f"{_number(least)} to {_number(most)}"
    when = f"steps {columns[0]} to {step}" if columns and across == "step" else f"step {step}"
    text.put((8, 20), f"{when}:  {used}" + ("" if spec.unit == "1" else f" {spec.unit}"), 13)
    for row in _ticks(rows, tall):
        text.put((left - 5, top + (row + 0.5) * tall), str(row), 13, "rm")
    _label_columns(text, columns, across, (left, bottom), cols, wide)
    text.put((12, (top + bottom) / 2), "layer", 13, "mm", turned=True)
    for share, beyond in ((0.0, "< " * (least < scale.low)), (0.5, ""), (1.0, "> " * (most > scale.high))):
        where = (bar_right + 4, top + (1 - share) * (bar_height - 1))
        text.put(where, beyond + _number(scale.value(share)), 13, "lm")

    canvas = text.greys()
    canvas[top:bottom, left:right] = field
    bar = np.linspace(SHADES - 1, 0, bar_height).round().astype(np.uint8)
    canvas[top : top + bar_height, bar_left:bar_right] = bar[:, None]
    result = image.fromarray(canvas, "P")
    result.putpalette(_palette())
    return result


def _label_columns(
    text: _Text, columns: tuple[str, ...] | None, across: str, corner: tuple[int, int], cols: int, wide: int
) -> None:
    """Write the names of columns, and the name of their axis, below the matrix."""
    left, bottom = corner
    longest = max(map(_font(13).getlength, columns)) if columns else 0
    # names wider than their columns alternate between two lines
    crowded = longest > wide and across != "step"
    shown = range(cols) if columns and across != "step" else _ticks(cols, wide, max(20, int(longest) + 8))
    for col in shown:
        where = (left + (col + 0.5) * wide, bottom + 3 + (13 if crowded and col % 2 else 0))
        text.put(where, columns[col] if columns else str(col), 10 if crowded else 13, "ma")
    if not crowded:
        middle = left + cols * wide / 2
        text.put((middle, bottom + 17), across or ("stage" if columns else "head"), 13, "ma")


def _extent(values: NDArray[Any]) -> tuple[float, float]:
    """Lowest and highest value; NaN if there is none."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (math.nan, math.nan)


def _mark(field: NDArray[np.uint8], values: NDArray[Any], scale: PictureScale, tall: int, wide: int) -> None:
    """Put a dot into the cells beyond the scale: white on its darkest colour, black on its lightest."""
    for beyond, shade in ((values < scale.low, _PAPER), (values > scale.high, SHADES)):
        for row, col in np.argwhere(beyond & np.isfinite(values)):
            bottom, right = row * tall + 2 + _DOT, (col + 1) * wide - 2
            field[bottom - _DOT : bottom, right - _DOT : right] = shade


def _enlarged(cells: NDArray[Any], tall: int, wide: int) -> NDArray[Any]:
    return cells.repeat(tall, axis=0).repeat(wide, axis=1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _ticks(count: int, cell: int, room: int = 15) -> range:
    """Numbers of rows or columns to label, so that each label has ``room`` pixels."""
    return range(0, count, next(step for step in (1, 2, 4, 8, 16, 32, 64) if step * cell >= room))


class _Text:
    """Grey text on white paper."""

    def __init__(self, size: tuple[int, int]) -> None:
        from PIL import Image as image
        from PIL import ImageDraw

        self._image = image.new("L", size, 255)
        self._draw = ImageDraw.Draw(self._image)

    def put(
        self, where: tuple[float, float], text: str, size: int, anchor: str = "la", *, turned: bool = False
    ) -> None:
        while size > 8 and _font(size).getlength(text) > self._image.width - where[0]:
            size -= 1
        font = _font(size)
        if not turned:
            self._draw.text(where, text, fill=0, font=font, anchor=anchor)
            return
        from PIL import Image as image
        from PIL import ImageDraw

        box = font.getbbox(text)
        strip = image.new("L", (math.ceil(box[2]) + 2, size + 4), 255)
        ImageDraw.Draw(strip).text((1, 0), text, fill=0, font=font)
        strip = strip.transpose(image.Transpose.ROTATE_90)
        self._image.paste(strip, (int(where[0] - strip.width / 2), int(where[1] - strip.height / 2)))

    def greys(self) -> NDArray[np.uint8]:
        """The page as the palette's sixteen greys."""
        return (np.asarray(self._image) // 16 + SHADES).astype(np.uint8)


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


@functools.cache
def _palette() -> list[int]:
    greys = np.repeat(np.linspace(0, 255, 256 - SHADES).round().astype(np.uint8)[:, None], 3, axis=1)
    return [int(value) for value in np.concatenate([sequential_colours(), greys]).ravel()]


def padded(images: Iterable[Image]) -> list[Image]:
    """Return pictures in colour, all as large as the largest, with white beside and below."""
    from PIL import Image as image

    images = list(images)
    size = max(picture.width for picture in images), max(picture.height for picture in images)
    result = []
    for picture in images:
        page = image.new("RGB", size, "white")
        page.paste(picture.convert("RGB"))
        result.append(page)
    return result


def png(picture: Image) -> bytes:
    """Return a picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=6)
    return file.getvalue()
