"""The catalogue's metrics of whether training does what it is meant to: weights move, masks hide."""

from __future__ import annotations

from lightning_geo.metrics.spec import MetricSpec

__all__ = ["MASKS", "SOURCES", "UPDATES"]

#: Where masks are looked at: on the probe, and in the training forward.
SOURCES = ("probe", "batch")

_LAYER = ("layer",)
_MASKS = "the masks that attention is given"
_DRAW = "a fixed draw of the block's weights"

UPDATES = [
    MetricSpec("update_size", "updates", _LAYER, "1",
               "‖W − W_prev‖ / ‖W_prev‖, W_prev the block's weights at the sample before",
               "0: the layer does not learn; a jump: the step is too large.",
               _DRAW, range=(0.0, None)),
    MetricSpec("unchanged_share", "updates", _LAYER, "1",
               "share of weights with the very bits of the sample before",
               "1: frozen; between 0 and 1 in low precision: updates are lost to rounding.",
               _DRAW, range=(0.0, 1.0)),
    MetricSpec("bf16_share", "updates", _LAYER, "1",
               "share of changed float32 weights, not 0, that bfloat16 holds exactly; chance level 2⁻¹⁶",
               "Near 1: something rounds float32 weights to bfloat16 after each step.",
               _DRAW, range=(0.0, 1.0)),
    MetricSpec("weight_similarity", "updates", _LAYER, "1",
               "largest cosine of the block's matrices, each less its mean, with another layer's",
               "1: two layers became the same; about 0: they were initialised apart.",
               _DRAW, range=(-1.0, 1.0), signed=True),
]  # fmt: skip

MASKS = [
    MetricSpec("future_visible", "masks", _LAYER, "1",
               "share of the pairs of a real token and a later one of its sequence that masks leave visible",
               "0: causal; 1: bidirectional. A change: a causal mask was lost, or gained.",
               _MASKS, SOURCES, (0.0, 1.0), self_attention=True),
    MetricSpec("padding_visible", "masks", _LAYER, "1",
               "share of the pairs of a real token and padding that masks leave visible",
               "Above 0: tokens attend to padding; a padding mask was lost or is ignored.",
               _MASKS, SOURCES, (0.0, 1.0), self_attention=True),
]  # fmt: skip
