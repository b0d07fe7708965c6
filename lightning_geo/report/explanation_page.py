"""Explanations as one self-contained HTML page. No script; every name and token is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from lightning_geo._version import __version__
from lightning_geo.report.figures import matrix
from lightning_geo.report.style import HEAD, PATTERNS
from lightning_geo.utils.formatting import number

if TYPE_CHECKING:
    from lightning_geo.analysis.pruning import Head
    from lightning_geo.interventions.explanation import Explanation

__all__ = ["explanation_page"]

#: From this z-score on, a number of a head counts as unusual.
_UNUSUAL = 2.0


def explanation_page(
    explanations: Sequence[Explanation],
    tokens: Sequence[Sequence[str]] | None = None,
    classes: Sequence[str] | None = None,
) -> str:
    """Return a page: each example's tokens, the ten heads that pushed it wrong, what they looked at.

    Args:
        explanations: From :func:`lightning_geo.explain`.
        tokens: Each example's, as text; else their numbers.
        classes: Names of the classes; else their numbers.
    """
    parts = ["<h1>Why these predictions</h1>", _reading()]
    for place, explanation in enumerate(explanations):
        shown = [str(t) for t in (tokens[place] if tokens is not None else explanation.input_ids)]
        parts.append(_example(place + 1, explanation, shown, classes))
    parts.append(f'<p class="note">Made by lightning-geo {escape(__version__)}.</p>')
    head = f"<head>{HEAD}<title>Why these predictions</title></head>"
    body = "\n".join([PATTERNS, *parts])
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n<body>{body}</body></html>\n'


def _example(place: int, e: Explanation, tokens: list[str], classes: Sequence[str] | None) -> str:
    def name(index: int) -> str:
        return classes[index] if classes is not None and index < len(classes) else str(index)

    verdict = "correctly" if e.predicted == e.target else "wrongly"
    facts = (
        f"Predicted {name(e.predicted)}, {verdict}; margin of {name(e.target)} over {name(e.contrast)}: "
        f"{number(e.margin, signed=True)}."
    )
    pictures = [_picture(stack, values) for stack, values in e.contributions.items()]
    return (
        f"<section><h3>Example {place}</h3><p>{escape(facts)}</p>"
        f'<p class="note">{escape(" ".join(tokens))}</p>{_heads(e, tokens)}{_layers(e)}'
        f'<div class="pictures">{"".join(pictures)}</div></section>'
    )


def _picture(stack: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    end = float(np.nanmax(np.abs(values))) or 1.0
    return matrix(values, f"contributions in {stack}", -end, end, diverging=True)


def _heads(e: Explanation, tokens: list[str]) -> str:
    several = len(e.contributions) > 1
    rows = [
        (f"{head.stack}/{head.layer}" if several else head.layer, head.head, number(value, signed=True),
         _gate(e, head), _looked_at(e, head, tokens), _unusual(e, head))
        for head, value in e.blamed(10)
    ]  # fmt: skip
    if not rows:
        return "<p>No head pushed the margin down.</p>"
    header = ("layer", "head", "contribution", "gate", "looked most at")
    if not e.unusual:
        return _table(header, [row[:5] for row in rows])
    return _table((*header, f"unusual against {e.references} correct examples"), rows)


def _gate(e: Explanation, head: Head) -> str:
    name, margin = (of[head.stack][head.layer, head.head] for of in (e.gates, e.gate_margins))
    return f"{name} ({margin:.2f})".replace("-", "−") if name else "not defined"


def _looked_at(e: Explanation, head: Head, tokens: list[str]) -> str:
    shares = e.attended[head.stack][head.layer, head.head]
    most = [i for i in np.argsort(-shares) if shares[i] > 0][:5]
    return ", ".join(f"{tokens[i] if i < len(tokens) else f'key {i}'} {100 * shares[i]:.0f} %" for i in most)


def _unusual(e: Explanation, head: Head) -> str:
    found = [
        (float(values[head.layer, head.head]), name)
        for name, values in e.unusual.get(head.stack, {}).items()
        if abs(values[head.layer, head.head]) >= _UNUSUAL
    ]
    return ", ".join(
        f"{name} {number(z, signed=True)} σ" for z, name in sorted(found, key=lambda f: -abs(f[0]))
    )


def _layers(e: Explanation) -> str:
    several = len(e.contributions) > 1
    rows = [
        (f"{stack}/{layer}" if several else layer, number(float(total), signed=True),
         number(float(total + e.errors[stack][layer]), signed=True),
         number(float(e.errors[stack][layer]), signed=True))
        for stack, values in e.contributions.items()
        for layer, total in enumerate(np.nansum(values, axis=1))
        if np.isfinite(e.errors[stack][layer])
    ]  # fmt: skip
    return _table(("layer", "sum of contributions", "margin lost when silenced", "error"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)]
    lines += ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{body}</table></div>'


def _reading() -> str:
    return (
        "<p>A head's contribution is what the margin between two classes would lose, to first order, if the "
        "head were silenced: negative where it pushed away from the class that it should be. The error of a "
        "layer is what silencing all its heads really costs, minus the sum of their contributions: where it "
        "is large, first order says little about that layer.</p>"
        "<p>A head's gate is what kind of thing it does on this example: open (attends to nearly all alike), "
        "closed (parked on special tokens or the first), instance (each token itself), backward or forward "
        "(near tokens on one side), directional (all tokens look at the same few), cluster (groups that look "
        "at each other), or mixed. In brackets how far it is inside that gate's threshold, between 0 and 1; "
        "of a mixed head how far from the nearest, negative.</p>"
        "<p>This attributes a margin to heads. It does not prove that a head causes the error, nor that the "
        "model would be better without it; and a token that a head looks at need not be one that it uses.</p>"
    )
