"""Pictures and templates as a notebook takes them: with their own style, and as files."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from markupsafe import Markup

from lightning_geo.report.rendering import render
from lightning_geo.utils.drawing import Drawing

__all__ = ["drawing", "fragment"]

_WIDE = 1000.0  # pixels of a file, after which pictures go to the next row
_GAP = 20.0
_SIZE = re.compile(r'<svg class="lg" viewBox="[^"]*" width="(\d+)" height="(\d+)"')


def fragment(template: str, **content: object) -> str:
    """Return HTML for the output of a notebook's cell.

    Args:
        template: Name of a file in ``templates/`` that extends ``notebook.html.jinja``.
        content: The names that the template refers to.
    """
    return _own_hatch(render(template, **content))


def drawing(title: str, pictures: Sequence[Markup], caption: str = "") -> Drawing:
    """Return pictures as one drawing.

    Args:
        title: Its subject.
        pictures: Side by side, in rows.
        caption: Text below the pictures.
    """
    shown = [picture for picture in pictures if picture]
    return Drawing(
        title,
        fragment("drawing.html.jinja", pictures=shown, caption=caption),
        _own_hatch(render("drawing.svg.jinja", title=title, **_laid_out(shown))),
    )


def _laid_out(pictures: Sequence[Markup]) -> dict[str, object]:
    """Each picture with its place in a file, and the file's size."""
    placed, x, y, row, widest = [], 0.0, 0.0, 0.0, 0.0
    for picture in pictures:
        size = _SIZE.match(picture)
        assert size is not None
        wide, tall = map(float, size.groups())
        if x and x + wide > _WIDE:
            x, y, row = 0.0, y + row + _GAP, 0.0
        at = Markup('<svg x="{:.0f}" y="{:.0f}" class="lg"').format(x, y)
        placed.append(Markup(picture.replace(Markup('<svg class="lg"'), at, 1)))
        x, row = x + wide + _GAP, max(row, tall)
        widest = max(widest, x - _GAP)
    return {"placed": placed, "width": round(widest), "height": round(y + row)}


def _own_hatch(markup: str) -> str:
    """Give the pattern of cells without a value a name of its own: a page holds the outputs of many cells."""
    own = f"absent-{zlib.crc32(markup.encode()):08x}"
    return markup.replace("url(#absent)", f"url(#{own})").replace('id="absent"', f'id="{own}"')
