"""The family ``gates``: what kind of thing each head does."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import HEAD, LAYER, PAPER, entry
from lightning_geo.metrics.gates import GATES, MIXED

__all__ = ["GATES_OF_HEADS"]

GATES_OF_HEADS = [
    entry(
        "gate", "gates", HEAD, "1",
        "how far a head is inside each gate's threshold: the least fulfilled of its conditions", PAPER,
        title="Margin of a gate",
        question="How clearly does the head do this kind of thing?",
        higher="the head is further inside this gate; the gate of the largest margin is the head's, if it is "
        "not negative.",
        lower="below 0, the head is outside this gate.",
        usual="−0.65 to 0.19 in BERT; 0.15 for open in an untrained decoder, and below 0 for the others",
        worry="A change of sign: the head becomes another kind, or mixed.",
        parts=GATES, range=(-1.0, 1.0), self_attention=True, default=False, signed=True,
    ),
    entry(
        "gate_count", "gates", LAYER, "heads", "heads of the layer whose gate it is", PAPER,
        title="Heads of a gate",
        question="How many heads of a layer do this kind of thing?",
        higher="more heads of the layer do it.",
        lower="fewer heads of the layer do it.",
        usual="0 to 9 of 12 in BERT; in an untrained decoder all 12 are open",
        worry="All heads of a trained layer in one gate: they are likely to do the same, see redundancy.",
        parts=(*GATES, MIXED), range=(0.0, None),
        headline=tuple(f"gate_count.{gate}" for gate in (*GATES, MIXED)), self_attention=True, default=False,
    ),
]  # fmt: skip
