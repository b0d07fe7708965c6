"""The parts of a catalogue entry: the definition, and words for a reader who is new to the metric."""

from __future__ import annotations

from typing import Any

from lightning_geo.metrics.spec import MetricSpec

__all__ = ["HEAD", "LAYER", "PAPER", "entry"]

#: Axes of metrics of heads, and of layers.
HEAD = ("layer", "head")
LAYER = ("layer",)

PAPER = "The geometry of BERT, arXiv 2502.12033"


def entry(
    name: str,
    family: str,
    axes: tuple[str, ...],
    unit: str,
    formula: str,
    source: str,
    *,
    title: str,
    question: str,
    higher: str,
    lower: str,
    usual: str,
    worry: str,
    **looks: Any,
) -> MetricSpec:
    """Return the spec of a built-in metric. All words are required here; its meaning is made of them.

    The arguments are the fields of :class:`~lightning_geo.metrics.spec.MetricSpec`; ``looks`` are those that
    have defaults.

    Example:
        >>> entry("m", "f", LAYER, "1", "x", "here", title="M", question="Which?", higher="more.",
        ...       lower="less.", usual="0 to 1.", worry="Never.").meaning
        'Higher: more. Lower: less.'
    """
    meaning = f"Higher: {higher} Lower: {lower}"
    return MetricSpec(
        name, family, axes, unit, formula, meaning, source, title=title, question=question, higher=higher,
        lower=lower, usual=usual, worry=worry, **looks,
    )  # fmt: skip
