"""The family ``updates``: whether weights change as training means them to."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import LAYER, entry

__all__ = ["UPDATES"]

_DRAW = "a fixed draw of the block's weights"

UPDATES = [
    entry(
        "update_size", "updates", LAYER, "1",
        "‖W − W_prev‖ / ‖W_prev‖, W_prev the block's weights at the sample before", _DRAW,
        title="Size of weight updates",
        question="How far do weights move between two samples?",
        higher="updates are larger, or samples lie further apart.",
        lower="updates are smaller; 0 is a layer that does not learn.",
        usual="0.00007 to 0.003 in a fine-tuning of BERT at a learning rate of 0.0001, samples 4 steps apart",
        worry="A jump 50 % above its trend: the step is too large.",
        range=(0.0, None), key=("update_size",), log_from=0.0,
    ),
    entry(
        "unchanged_share", "updates", LAYER, "1", "share of weights with the very bits of the sample before",
        _DRAW,
        title="Share of unchanged weights",
        question="Does every weight of a layer change?",
        higher="more weights stayed as they were; 1 is a frozen layer.",
        lower="more weights changed; 0 is all of them.",
        usual="0.0000 to 0.0005 in a fine-tuning of BERT in float32",
        worry="1 where the layer should learn: it is frozen. From 0.5 to 0.9999: updates are lost to the "
        "weights' low precision (Zamirai et al. 2020).",
        range=(0.0, 1.0),
    ),
    entry(
        "bf16_share", "updates", LAYER, "1",
        "share of changed float32 weights, not 0, that bfloat16 holds exactly; chance level 2⁻¹⁶", _DRAW,
        title="Share of weights that bfloat16 holds",
        question="Does something round float32 weights to bfloat16?",
        higher="more float32 weights hold only what bfloat16 can; 1 is all of them.",
        lower="weights use float32's precision; by chance it is 1 in 65,536.",
        usual="0.0000 to 0.0001 in a fine-tuning of BERT in float32",
        worry="0.9 or more: something rounds the weights after each step, and small updates are lost.",
        range=(0.0, 1.0),
    ),
    entry(
        "weight_similarity", "updates", LAYER, "1",
        "largest cosine of the block's matrices, each less its mean, with another layer's", _DRAW,
        title="Similarity to another layer's weights",
        question="Are two layers the same?",
        higher="the weights are nearer to another layer's; 1 is the same.",
        lower="the weights are unrelated; about 0 for layers that were initialised apart.",
        usual="0.00 to 0.01 in BERT and in an untrained decoder",
        worry="0.9999 or more after a start at 0.99 or less: two layers became the same.",
        range=(-1.0, 1.0), signed=True,
    ),
]  # fmt: skip
