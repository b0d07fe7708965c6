"""The colour maps of pictures, reports and the dashboard."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["CATEGORICAL", "DIVERGING", "SEQUENTIAL", "SHADES", "diverging_colours", "sequential_colours"]

# viridis (Smith & van der Walt, CC0) at 20 equal distances: uniform in lightness, safe for the colour-blind
SEQUENTIAL = (
    "440154 481467 482576 453781 404688 39558c 33638d 2d718e 287d8e 238a8d "
    "1f968b 20a386 29af7f 3cbc75 56c667 74d055 94d840 b8de29 dce318 fde725"
)
# blue below, light grey, orange above (ColorBrewer's Blues and Oranges, Apache-2.0): told apart by every
# common kind of colour blindness; the dashboard's colour.js has the same maps, which a test compares
DIVERGING = "08306b 08519c 2171b5 6baed6 c6dbef f7f7f7 fdd0a2 fd8d3c d94801 a63603 7f2704"
# Okabe & Ito's colours, as the dashboard draws lines; the last, a grey, is of what fits nothing
CATEGORICAL = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#7f7f7f")

#: Entries of a colour map. A picture's palette of 256 has 16 left: greys, for text and for what is absent.
SHADES = 240


@functools.cache
def sequential_colours() -> NDArray[np.uint8]:
    """Return the colour map [240, 3] of magnitudes, lowest value first."""
    return _interpolated(SEQUENTIAL)


@functools.cache
def diverging_colours() -> NDArray[np.uint8]:
    """Return the colour map [240, 3] of differences, lowest value first."""
    return _interpolated(DIVERGING)


def _interpolated(anchors: str) -> NDArray[np.uint8]:
    points = np.array([list(bytes.fromhex(colour)) for colour in anchors.split()], np.float64)
    place = np.linspace(0, len(points) - 1, SHADES)
    channels = [np.interp(place, np.arange(len(points)), channel) for channel in points.T]
    return np.asarray(np.stack(channels, axis=1).round(), np.uint8)
