"""The spec of a metric: its name, unit, range and meaning; :mod:`.catalog` is the table of all specs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ROLES", "STAGES", "WORDS", "MetricSpec", "unit_and_range"]

ROLES = ("query", "key", "value", "output")
STAGES = ("input", "attention", "output")

#: The fields of a spec that explain the metric to someone who meets it first; built-in ones have them all.
WORDS = ("title", "question", "higher", "lower", "usual", "worry")


@dataclass(frozen=True)
class MetricSpec:
    """One named number: its definition, its axes, and how to read it.

    Args:
        name: Name in ``metrics=``; stored as ``name`` or, with ``parts``, as ``name.part``.
        family: Charts, selection and the module in ``functional`` are grouped by it.
        axes: Names of the array's axes, ``layer`` first.
        unit: ``nats``, ``tokens``, ``1`` for ratios, ...
        formula: As plain text.
        meaning: What a rise or a fall suggests, one sentence.
        source: Paper or convention that it comes from.
        parts: Roles or stages, one stored metric each.
        range: Lowest and highest possible value; ``None`` where there is no bound.
        headline: Parts (or the bare name) that get pictures by default, and per-layer scalars on request.
        key: Parts (or the bare name) that are key metrics: the scalars that loggers get by default.
        summary: How a model number is made of layers and heads, and sequences merged.
        self_attention: Defined only where queries and keys are the same tokens.
        default: Whether it is measured where the user names no metrics.
        signed: Whether its sign matters most: its colours diverge from 0.
        title: Name for people, in place of ``name``; empty where there is none, as all words that follow.
        question: The question that it answers, for someone who does not know the metric.
        higher: What a higher value means: the rest of a sentence that begins with "Higher:".
        lower: What a lower value means, in the same way.
        usual: Which values are usual, and where they were measured.
        worry: When to worry, with the source where there is one.
        log_from: Its colours follow the logarithm of its distance from this number; ``None`` for its value.
    """

    name: str
    family: str
    axes: tuple[str, ...]
    unit: str
    formula: str
    meaning: str
    source: str
    parts: tuple[str, ...] = ()
    range: tuple[float | None, float | None] = (None, None)
    headline: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    summary: Literal["mean", "max"] = "mean"
    self_attention: bool = False
    default: bool = True
    signed: bool = False
    title: str = ""
    question: str = ""
    higher: str = ""
    lower: str = ""
    usual: str = ""
    worry: str = ""
    log_from: float | None = None

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names under which its arrays are stored."""
        return tuple(f"{self.name}.{part}" for part in self.parts) or (self.name,)


def unit_and_range(spec: MetricSpec) -> str:
    """Return unit and range as text: ``nats, ≥ 0``; ``1`` is the unit of ratios and needs no mention.

    Example:
        >>> unit_and_range(MetricSpec("m", "f", ("layer",), "nats", "", "", "", range=(0.0, 2.5)))
        'nats, 0 to 2.5'
    """
    low, high = spec.range
    if low is not None and high is not None:
        span = f"{low:g} to {high:g}".replace("-", "−")
    elif low is not None:
        span = f"≥ {low:g}".replace("-", "−")
    elif high is not None:
        span = f"≤ {high:g}".replace("-", "−")
    else:
        span = ""
    return ", ".join(part for part in (spec.unit if spec.unit != "1" else "", span) if part) or "any number"
