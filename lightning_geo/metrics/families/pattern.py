"""The family ``pattern``: where heads look."""

from __future__ import annotations

from typing import Any

from lightning_geo.metrics.families.entry import HEAD, PAPER, entry
from lightning_geo.metrics.spec import MetricSpec

__all__ = ["PATTERN"]

_CLARK = "Clark et al. 2019 (what attention heads look at)"


def _share(
    name: str, formula: str, source: str, *, headline: bool = False, key: bool = False, **words: Any
) -> MetricSpec:
    """A share of the attention, mean over valid query rows."""
    return entry(
        name, "pattern", HEAD, "1", formula, source,
        range=(0.0, 1.0), headline=(name,) if headline else (), key=(name,) if key else (),
        self_attention=True, **words,
    )  # fmt: skip


PATTERN = [
    _share(
        "self_mass", "p_ii", _CLARK, headline=True,
        title="Attention to itself",
        question="How much does a token attend to itself?",
        higher="tokens look at themselves.",
        lower="tokens look at others.",
        usual="0.01 to 0.11 in BERT, 0.05 in an untrained decoder",
        worry="Near 1 in all heads of a layer: its attention no longer mixes tokens.",
    ),
    _share(
        "previous_mass", "p_{i,i−1}", _CLARK, headline=True,
        title="Attention to the previous token",
        question="How much does a token attend to the one before it?",
        higher="near 1, a previous-token head.",
        lower="tokens look elsewhere.",
        usual="0.01 to 0.33 in BERT, with one head at 0.99; 0.04 in an untrained decoder",
        worry="Nothing by itself. A head that falls from near 1 has changed its job.",
    ),
    _share(
        "next_mass", "p_{i,i+1}", _CLARK,
        title="Attention to the next token",
        question="How much does a token attend to the one after it?",
        higher="near 1, a next-token head.",
        lower="tokens look elsewhere; 0 in causal models.",
        usual="0.00 to 0.26 in BERT, with one head at 0.64; 0 in causal models",
        worry="Above 0 in a causal model: tokens see the future, see future_visible.",
    ),
    _share(
        "first_mass", "p at the sequence's first valid token", "Xiao et al. 2023 (attention sinks)",
        headline=True, key=True,
        title="Attention to the first token",
        question="Does attention rest on the first token?",
        higher="attention is parked on the first token, a sink.",
        lower="attention goes to other tokens.",
        usual="0.02 to 0.59 in BERT, 0.05 in an untrained decoder",
        worry="0.9 or more in half of a layer's heads that began at 0.6 or less: heads with nothing to add "
        "rest there (Xiao et al. 2023).",
    ),
    _share(
        "backward_mass", "Σ_{j<i} p_ij", PAPER,
        title="Attention to earlier tokens",
        question="How much does a head read what came before?",
        higher="the head reads the past.",
        lower="the head reads the token itself, or ahead.",
        usual="0.34 to 0.95 in BERT, 0.95 in an untrained decoder",
        worry="Nothing by itself. In causal models it is 1 − self_mass.",
    ),
    _share(
        "forward_mass", "Σ_{j>i} p_ij", PAPER,
        title="Attention to later tokens",
        question="How much does a head read ahead?",
        higher="the head reads ahead.",
        lower="the head reads the token itself, or the past; 0 in causal models.",
        usual="0.02 to 0.62 in BERT, 0 in causal models",
        worry="Above 0 in a causal model: tokens see the future, see future_visible.",
    ),
    entry(
        "attention_distance", "pattern", HEAD, "tokens", "Σ_j p_ij |i−j|",
        "Sukhbaatar et al. 2019; Raghu et al. 2021",
        title="Attention distance",
        question="How far away are the tokens that a head looks at?",
        higher="attention reaches further.",
        lower="attention is local.",
        usual="12 to 38 of 96 tokens in BERT. Uniform attention over n tokens has n/3, causal n/4",
        worry="Near 0 in all heads of a layer: its attention no longer mixes tokens.",
        range=(0.0, None), headline=("attention_distance",), key=("attention_distance",), self_attention=True,
    ),
    _share(
        "special_mass", "Σ p on special tokens", _CLARK,
        title="Attention to special tokens",
        question="How much attention rests on separators and other special tokens?",
        higher="the head parks on special tokens and adds little.",
        lower="the head attends to text.",
        usual="0.03 to 0.60 in BERT",
        worry="A rise in most heads of a layer: their attention becomes a no-op (Clark et al. 2019).",
    ),
]  # fmt: skip
