"""A check as a picture: the values on a scale, and where its limit ends."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lightning_geo.analysis.audit.check import Check
from lightning_geo.analysis.audit.words import exact, figure

__all__ = ["limit_scale"]

_LEFT, _WIDTH = 30.0, 420.0
_DOTS = 200  # values of a check; more lie on each other
_SVG = Markup(
    '<svg class="lg" viewBox="0 0 480 66" width="480" height="66" role="img" '
    'aria-label="{label}">{body}</svg>'
)
_PART = Markup('<rect class="{kind}" x="{x:.1f}" y="22" width="{wide:.1f}" height="14"/>')
_END = Markup(
    '<path class="limit" d="M{x:.1f} 18v22"/><text x="{x:.1f}" y="54" class="{kind}">limit {text}</text>'
)
_VALUE = Markup('<circle class="value" cx="{x:.1f}" cy="29" r="3"/>')
_WORST = Markup('<path class="worst {kind}" d="M{x:.1f} 20l5 -8h-10z"/>'
                '<text x="{x:.1f}" y="9" class="{anchor} t">{text}</text>')  # fmt: skip


def limit_scale(check: Check) -> Markup:
    """Return the values of the worst sample as dots on a scale, within and beyond the limit.

    Args:
        check: With a worst value.
    """
    assert check.worst is not None
    limit = check.limit
    low, high = limit.at_least, limit.at_most
    if limit.change_at_most is not None:
        low, high = -limit.change_at_most, limit.change_at_most
    values = np.unique(check.values[np.isfinite(check.values)])
    ends = [end for end in (low, high) if end is not None]
    least, most = _span(np.array([*values, *ends]), (None, None) if limit.of_change else check.spec.range)

    def place(value: float) -> float:
        return _LEFT + float(np.clip((value - least) / (most - least), 0, 1)) * _WIDTH

    start, end = place(least if low is None else low), place(most if high is None else high)
    parts = [
        _PART.format(kind=kind, x=left, wide=right - left)
        for kind, left, right in (
            ("beyond", _LEFT, start), ("allowed", start, end), ("beyond", end, _LEFT + _WIDTH),
        )
        if right > left
    ]  # fmt: skip
    few = np.unique(np.linspace(0, len(values) - 1, min(len(values), _DOTS)).astype(int))
    parts += [_VALUE.format(x=place(float(value))) for value in values[few]] if len(values) else []
    for value in ends:
        x = place(value)
        parts.append(_END.format(x=x, text=exact(value), kind=_anchor(x)))
    kind = "bad" if check.worst.beyond > 0 else "good"
    at = place(check.worst.value)
    parts.append(_WORST.format(x=at, kind=kind, anchor=_anchor(at), text=figure(check.worst.value)))
    label = f"{check.metric}: {figure(check.worst.value)}"
    return _SVG.format(label=label, body=Markup("").join(parts))


def _span(values: NDArray[np.float64], of_metric: tuple[float | None, float | None]) -> tuple[float, float]:
    """Both ends of the scale: the metric's range where that is finite, else what holds all with a margin."""
    if of_metric[0] is not None and of_metric[1] is not None:
        return of_metric[0], of_metric[1]
    least, most = float(values.min()), float(values.max())
    margin = 0.15 * (most - least) or abs(most) or 1.0
    return least - margin, most + margin


def _anchor(x: float) -> str:
    """How text stands at a place, so that it stays in the picture."""
    return "b" if x < _LEFT + 60 else "e" if x > _LEFT + _WIDTH - 60 else "m"
