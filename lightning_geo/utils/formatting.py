"""Text for a terminal: numbers, and names that cannot move the cursor."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Iterable

__all__ = ["apart", "did_you_mean", "moment", "moved", "number", "plain", "some"]


def plain(text: object) -> str:
    r"""Return text with everything that a terminal might obey written out.

    Example:
        >>> print(plain("run\x1b[2J"))
        run\x1b[2J
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text)
    )


def number(value: float, *, signed: bool = False, digits: int = 4) -> str:
    """Return a number with a few significant digits, four by default.

    Example:
        >>> number(0.123456), number(12345.6), number(-0.5, signed=True), number(float("nan"))
        ('0.1235', '12,346', '−0.5000', '-')
        >>> number(0.00312, digits=3)
        '0.0031'
    """
    if math.isnan(value):
        return "-"
    sign = "+" if signed and value > 0 else "−" if value < 0 else ""
    size = abs(value)
    if not value:
        return "0"
    if math.isinf(size):
        return f"{sign}∞"
    if size < 10.0**-digits or size >= 1e6:
        return f"{sign}{size:.2e}"
    # at least two digits that are not 0
    exponent = int(f"{size:.1e}".partition("e")[2])  # of the rounded number: 0.00999 is 0.010
    places = max(digits, 1 - exponent) if size < 1 else max(0, digits - 1 - int(math.log10(size)))
    return f"{sign}{size:,.{places}f}"


def apart(first: float, last: float, *, digits: int = 3) -> tuple[str, str]:
    """Return two numbers with as many digits as tell them apart.

    Example:
        >>> apart(0.496, 0.685), apart(1.0, 0.99996), apart(0.5, 0.5)
        (('0.496', '0.685'), ('1.0000', '0.99996'), ('0.500', '0.500'))
    """
    texts = number(first, digits=digits), number(last, digits=digits)
    if first == last or not math.isfinite(first - last) or digits == 12:
        return texts
    shown = [float(text.replace(",", "").replace("−", "-")) for text in texts]
    return apart(first, last, digits=digits + 1) if shown[0] == shown[1] else texts


def moved(first: float, last: float) -> str:
    """Return two numbers with an arrow between them.

    Example:
        >>> moved(0.496, 0.685)
        '0.496 → 0.685'
    """
    return " → ".join(apart(first, last))


def moment(seconds: float) -> str:
    """Return a time of day, of seconds since the Unix epoch, that a file may have wrong.

    Example:
        >>> moment(float("nan"))
        'unknown time'
    """
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "unknown time"


def some(names: Iterable[str]) -> str:
    """Name the first few, and count the rest.

    Example:
        >>> some("abcde")
        'a, b, c and 2 more'
    """
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Ask for the names nearest to one that is unknown: at most five, at least one.

    Example:
        >>> did_you_mean("entropie", ["entropy", "drift"]), did_you_mean("lyer", ["layer", "layers"])
        ("Did you mean 'entropy'?", "Did you mean 'layer' or 'layers'?")
    """
    known = list(known)
    if not known:
        return "There is none."
    near = difflib.get_close_matches(str(name), known, n=5) or difflib.get_close_matches(
        str(name), known, n=1, cutoff=0.0
    )
    *others, last = map(repr, near)
    return f"Did you mean {', '.join(others)}{' or ' * bool(others)}{last}?"
