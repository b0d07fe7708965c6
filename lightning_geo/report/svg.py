"""The frame and the text of a picture as inline SVG, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

__all__ = ["joined", "svg", "text", "thinned"]

_POINTS = 300  # of a curve or a picture's samples; the eye sees no more

_SVG = Markup(
    '<svg class="lg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
    'role="img" aria-label="{title}"><text x="4" y="13" class="t">{title}</text>{body}</svg>'
)


def svg(title: str, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    """Return a picture.

    Args:
        title: Line at the top, also for readers who cannot see it.
        width: In pixels.
        height: In pixels.
        parts: Its elements.
    """
    return _SVG.format(title=title, width=width, height=height, body=joined(parts))


def text(x: float, y: float, content: object, kind: str = "") -> Markup:
    """Return a piece of text.

    Args:
        x: Where it begins, or ends with the kind ``e``, or has its middle with ``m``.
        y: Its base line.
        content: Anything that ``str`` takes.
        kind: Classes of the style sheet, separated by blanks.
    """
    style = Markup(' class="{}"').format(kind) if kind else Markup("")
    return Markup('<text x="{:.1f}" y="{:.1f}"{}>{}</text>').format(x, y, style, content)


def joined(parts: Iterable[Markup]) -> Markup:
    """Return elements one after another."""
    return Markup("").join(parts)


def thinned(count: int, most: int = _POINTS) -> NDArray[np.intp]:
    """Return the indices of at most so many, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))
