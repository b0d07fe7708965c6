"""A curve in one line of text."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

__all__ = ["sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.,-=+*#"


def sparkline(values: Sequence[float], width: int, encoding: str | None = None) -> str:
    """Draw numbers as blocks between the lowest and the highest of them; none for what is not finite.

    Of more numbers than columns, evenly spaced ones are drawn, the first and the last among them. Where the
    encoding has no blocks, ASCII characters stand for them.

    Args:
        values: Numbers in the order of time.
        width: Columns at most.
        encoding: Of the output; ``None`` for that of ``sys.stdout``.

    Example:
        >>> [sparkline(numbers, 4, "utf-8") for numbers in ([0, 1, 2, 3], range(100), [5, 5])]
        ['▁▃▆█', '▁▃▆█', '▄▄']
        >>> sparkline([0, 1, 2, 3], 4, "ascii")
        '_,+#'
    """
    count = min(width, len(values))
    last = len(values) - 1
    shown = [float(values[last - last * place // max(count - 1, 1)]) for place in reversed(range(count))]
    known = [value for value in values if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    levels = _BLOCKS if _writes(_BLOCKS, encoding) else _ASCII
    return "".join(_level(value, low, high, levels) for value in shown)


def _level(value: float, low: float, high: float, levels: str) -> str:
    if not math.isfinite(value):
        return " "
    # halves first: the distance of two large numbers may be infinite
    share = 0.45 if high == low else (value / 2 - low / 2) / (high / 2 - low / 2)
    return levels[min(int(share * len(levels)), len(levels) - 1)]


def _writes(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
