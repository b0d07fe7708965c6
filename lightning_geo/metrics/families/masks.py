"""The family ``masks``: what masks leave visible."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import LAYER, entry

__all__ = ["MASKS", "SOURCES"]

#: Where masks are looked at: on the probe, and in the training forward.
SOURCES = ("probe", "batch")

_MASKS = "the masks that attention is given"

MASKS = [
    entry(
        "future_visible", "masks", LAYER, "1",
        "share of the pairs of a real token and a later one of its sequence that masks leave visible", _MASKS,
        title="Visible future",
        question="Can tokens see later ones?",
        higher="more of the future is visible; 1 is bidirectional.",
        lower="less of the future is visible; 0 is causal.",
        usual="0 in causal models, 1 in bidirectional ones",
        worry="Above 0 in a model that was causal: its causal mask is lost.",
        parts=SOURCES, range=(0.0, 1.0), self_attention=True,
    ),
    entry(
        "padding_visible", "masks", LAYER, "1",
        "share of the pairs of a real token and padding that masks leave visible", _MASKS,
        title="Visible padding",
        question="Do tokens attend to padding?",
        higher="more padding is visible.",
        lower="less padding is visible; 0 is none.",
        usual="0",
        worry="Above 0: a padding mask was lost, or is ignored.",
        parts=SOURCES, range=(0.0, 1.0), self_attention=True,
    ),
]  # fmt: skip
