"""Explanations as one self-contained HTML page. No script; every name and token is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from lightning_geo.report.charts import balance
from lightning_geo.report.figures import matrix
from lightning_geo.report.rendering import Table, render
from lightning_geo.utils.formatting import number

if TYPE_CHECKING:
    from lightning_geo.analysis.pruning import Head
    from lightning_geo.interventions.attribution import Explanation

__all__ = ["ShownExplanation", "Token", "explanation_page", "shown_explanation"]

#: z-score at which a head's number counts as unusual.
_UNUSUAL = 2.0
_BARS = 5  # heads on each side
_HEADS = 10  # in the table


class Token(NamedTuple):
    """A token as the page shows it.

    Args:
        text: The token, with the blank before it.
        share: Share of the blamed heads' attention, in per cent.
        strength: Of its colour, 0 to 1.
    """

    text: str
    share: str
    strength: float


class ShownExplanation(NamedTuple):
    """The parts of the page about one example, the most important first.

    Args:
        level: ``well`` for a correct prediction, ``warning`` for a wrong one.
        verdict: The prediction, and by how much the correct class leads or trails.
        trust: Where first order failed, and what was done instead; empty where it did not.
        balance: Bars of the heads against and for the correct class.
        tokens: Coloured by the attention of the heads against it.
        heads: The heads against it.
        layers: The measured cost of silencing each layer.
        pictures: Effects of all heads.
    """

    level: str
    verdict: str
    trust: str
    balance: Markup
    tokens: list[Token]
    heads: Table
    layers: Table
    pictures: list[Markup]


def explanation_page(explanations: Sequence[Explanation]) -> str:
    """Return a page with each example's prediction, the heads against and for its class, and its tokens.

    Args:
        explanations: From :func:`lightning_geo.explain`.
    """
    examples = [shown_explanation(explanation) for explanation in explanations]
    return render("explanation.html.jinja", title="Why these predictions", examples=examples)


def shown_explanation(e: Explanation) -> ShownExplanation:
    """Return the parts that a page or a notebook shows of an explanation."""
    verdict = "correct" if e.predicted == e.target else "incorrect"
    verb = "leads" if e.margin > 0 else "trails"
    against, supporting = e.blamed(_BARS), e.supporting(_BARS)
    bars = [(_bar_name(e, head), value) for head, value in [*against, *supporting]]
    target = e.name(e.target)
    return ShownExplanation(
        "well" if e.predicted == e.target else "warning",
        f"Predicted {e.name(e.predicted)} ({verdict}). {target} {verb} {e.name(e.contrast)} by "
        f"{number(abs(e.margin), digits=3)} logits.",
        _trust(e),
        balance(bars, f"Heads against and for {target}, in logits", (f"against {target}", f"for {target}"))
        if bars
        else Markup(""),
        _tokens(e),
        _heads(e),
        _layers(e),
        [_picture(stack, values) for stack, values in e.effects.items()],
    )


def _bar_name(e: Explanation, head: Head) -> str:
    stack = f"{head.stack}/" if len(e.contributions) > 1 else ""
    return f"{stack}layer {head.layer} head {head.head}{' (silenced)' if e.was_silenced(head) else ''}"


def _trust(e: Explanation) -> str:
    failed = [
        f"{stack}/{layer}" if len(e.silenced) > 1 else str(layer)
        for stack, values in e.silenced.items()
        for layer in np.flatnonzero(np.isfinite(values).any(axis=1))
    ]
    if not failed:
        return ""
    *others, last = failed
    layers = f"layers {', '.join(others)} and {last}" if others else f"layer {last}"
    return (
        f"First order fails in {layers}: the heads' contributions miss what silencing the whole layer costs "
        "by more than half of it. There each head was really silenced instead."
    )


def _picture(stack: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Markup:
    end = float(np.nanmax(np.abs(values))) or 1.0
    return matrix(values, f"margin lost without each head, {stack}", -end, end, diverging=True)


def _tokens(e: Explanation) -> list[Token]:
    """Coloured by how much the most blamed heads attend to them, each head weighed by its effect."""
    names = _names(e)
    blamed = [(head, -value) for head, value in e.blamed(_BARS)]
    total = sum(weight for _, weight in blamed)
    shares = np.zeros(len(names))
    for head, weight in blamed:
        of_head = e.attended[head.stack][head.layer, head.head]
        if len(of_head) == len(names):  # in cross-attention keys are other tokens
            shares += weight / total * np.nan_to_num(of_head)
    # heads rest on special tokens most of the time: their share must not take the colour from all others
    top = float(np.percentile(shares[shares > 0], 95)) if (shares > 0).any() else 1.0
    return [
        Token(text.removeprefix("##") if text.startswith("##") else f" {text}", f"{100 * share:.1f} %",
              round(min(1.0, share / top), 2))
        for text, share in zip(names, shares, strict=True)
        if text
    ]  # fmt: skip


def _names(e: Explanation) -> list[str]:
    return list(e.tokens) or [str(token) for token in e.input_ids]


def _heads(e: Explanation) -> Table:
    several = len(e.contributions) > 1
    rows = [
        (f"{head.stack}/{head.layer}" if several else head.layer, head.head,
         number(value, signed=True, digits=3), "silenced" if e.was_silenced(head) else "first order",
         _gate(e, head), _attended(e, head), _unusual(e, head))
        for head, value in e.blamed(_HEADS)
    ]  # fmt: skip
    header = ("layer", "head", "effect", "measured by", "gate", "attends most to")
    if not e.unusual:
        return Table(header, [row[:6] for row in rows])
    return Table((*header, f"unusual against {e.references} correct examples"), rows)


def _gate(e: Explanation, head: Head) -> str:
    name = e.gates[head.stack][head.layer, head.head]
    margin = e.gate_margins[head.stack][head.layer, head.head]
    return f"{name} ({margin:.2f})".replace("-", "−") if name else "not defined"


def _attended(e: Explanation, head: Head) -> str:
    shares, names = e.attended[head.stack][head.layer, head.head], _names(e)
    most = [i for i in np.argsort(-shares) if shares[i] > 0][:5]
    return ", ".join(f"{names[i] if i < len(names) else f'key {i}'} {100 * shares[i]:.0f} %" for i in most)


def _unusual(e: Explanation, head: Head) -> str:
    scores = [
        (float(values[head.layer, head.head]), name)
        for name, values in e.unusual.get(head.stack, {}).items()
        if abs(values[head.layer, head.head]) >= _UNUSUAL
    ]
    largest_first = sorted(scores, key=lambda score: -abs(score[0]))
    return ", ".join(f"{name} {number(z, signed=True, digits=3)} σ" for z, name in largest_first)


def _layers(e: Explanation) -> Table:
    several = len(e.contributions) > 1
    rows = []
    for stack, values in e.contributions.items():
        for layer, total in enumerate(np.nansum(values, axis=1)):
            error = float(e.errors[stack][layer])
            if not np.isfinite(error):
                continue
            lost = float(total) + error
            share = f"{100 * total / lost:.0f} %".replace("-", "−") if lost else "-"
            heads = "silenced" if np.isfinite(e.silenced[stack][layer]).any() else "first order"
            rows.append(
                (f"{stack}/{layer}" if several else layer, number(lost, signed=True, digits=3),
                 number(float(total), signed=True, digits=3), share, heads)
            )  # fmt: skip
    return Table(("layer", "margin lost without it", "sum of contributions", "explained", "heads by"), rows)
