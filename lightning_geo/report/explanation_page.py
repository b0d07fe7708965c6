"""Explanations as one self-contained HTML page. No script; every name and token is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from lightning_geo.report.figures import matrix
from lightning_geo.report.rendering import Table, render
from lightning_geo.utils.formatting import number

if TYPE_CHECKING:
    from lightning_geo.analysis.pruning import Head
    from lightning_geo.interventions.explanation import Explanation

__all__ = ["explanation_page"]

#: z-score at which a head's number counts as unusual.
_UNUSUAL = 2.0


class _Example(NamedTuple):
    """The page's contents for one example."""

    verdict: str
    text: str
    heads: Table
    layers: Table
    pictures: list[Markup]


def explanation_page(
    explanations: Sequence[Explanation],
    tokens: Sequence[Sequence[str]] | None = None,
    classes: Sequence[str] | None = None,
) -> str:
    """Return a page with each example's tokens, the ten heads that lowered its margin most.

    Args:
        explanations: From :func:`lightning_geo.explain`.
        tokens: Each example's tokens as text; ``None`` shows their ids.
        classes: Names of the classes; ``None`` shows their indices.
    """
    examples = []
    for place, explanation in enumerate(explanations):
        shown = [str(t) for t in (tokens[place] if tokens is not None else explanation.input_ids)]
        examples.append(_example(explanation, shown, classes))
    return render("explanation.html.jinja", title="Why these predictions", examples=examples)


def _example(e: Explanation, tokens: list[str], classes: Sequence[str] | None) -> _Example:
    def name(index: int) -> str:
        return classes[index] if classes is not None and index < len(classes) else str(index)

    verdict = "correct" if e.predicted == e.target else "incorrect"
    verb = "leads" if e.margin > 0 else "trails"
    return _Example(
        f"Predicted {name(e.predicted)} ({verdict}). {name(e.target)} {verb} {name(e.contrast)} by "
        f"{number(abs(e.margin))} logits.",
        " ".join(tokens),
        _heads(e, tokens),
        _layers(e),
        [_picture(stack, values) for stack, values in e.contributions.items()],
    )


def _picture(stack: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Markup:
    end = float(np.nanmax(np.abs(values))) or 1.0
    return matrix(values, f"contributions in {stack}", -end, end, diverging=True)


def _heads(e: Explanation, tokens: list[str]) -> Table:
    several = len(e.contributions) > 1
    rows = [
        (f"{head.stack}/{head.layer}" if several else head.layer, head.head, number(value, signed=True),
         _gate(e, head), _attended(e, head, tokens), _unusual(e, head))
        for head, value in e.blamed(10)
    ]  # fmt: skip
    header = ("layer", "head", "contribution", "gate", "attends most to")
    if not e.unusual:
        return Table(header, [row[:5] for row in rows])
    return Table((*header, f"unusual against {e.references} correct examples"), rows)


def _gate(e: Explanation, head: Head) -> str:
    name = e.gates[head.stack][head.layer, head.head]
    margin = e.gate_margins[head.stack][head.layer, head.head]
    return f"{name} ({margin:.2f})".replace("-", "−") if name else "not defined"


def _attended(e: Explanation, head: Head, tokens: list[str]) -> str:
    shares = e.attended[head.stack][head.layer, head.head]
    most = [i for i in np.argsort(-shares) if shares[i] > 0][:5]
    return ", ".join(f"{tokens[i] if i < len(tokens) else f'key {i}'} {100 * shares[i]:.0f} %" for i in most)


def _unusual(e: Explanation, head: Head) -> str:
    scores = [
        (float(values[head.layer, head.head]), name)
        for name, values in e.unusual.get(head.stack, {}).items()
        if abs(values[head.layer, head.head]) >= _UNUSUAL
    ]
    largest_first = sorted(scores, key=lambda score: -abs(score[0]))
    return ", ".join(f"{name} {number(z, signed=True)} σ" for z, name in largest_first)


def _layers(e: Explanation) -> Table:
    several = len(e.contributions) > 1
    rows = [
        (f"{stack}/{layer}" if several else layer, number(float(total), signed=True),
         number(float(total + e.errors[stack][layer]), signed=True),
         number(float(e.errors[stack][layer]), signed=True))
        for stack, values in e.contributions.items()
        for layer, total in enumerate(np.nansum(values, axis=1))
        if np.isfinite(e.errors[stack][layer])
    ]  # fmt: skip
    return Table(("layer", "sum of contributions", "margin lost by silencing", "error"), rows)
