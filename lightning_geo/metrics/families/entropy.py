"""The family ``entropy``: how focused heads are."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import HEAD, entry

__all__ = ["ENTROPY"]

_SHANNON = "Shannon 1948, of the attention probabilities"
_COLLAPSE = "Near 1 in many heads at once: entropy collapse, which normalized_entropy shows best."

ENTROPY = [
    entry(
        "entropy", "entropy", HEAD, "nats", "−Σ p ln p", _SHANNON,
        title="Attention entropy",
        question="Over how many tokens does a head spread its attention?",
        higher="attention is spread over more tokens; e to the entropy is how many would share it evenly.",
        lower="heads focus on fewer tokens.",
        usual="0.9 to 4.3 in BERT, 3.6 in an untrained decoder",
        worry="Near 0 in many heads at once: entropy collapse (Zhai et al. 2023). Judge by "
        "normalized_entropy, which does not depend on the length.",
        range=(0.0, None), headline=("entropy",), key=("entropy",),
    ),
    entry(
        "normalized_entropy", "entropy", HEAD, "1", "entropy / ln(visible keys), rows with ≥ 2 visible keys",
        _SHANNON,
        title="Normalized attention entropy",
        question="How evenly does a head spread its attention, whatever the length?",
        higher="attention is more even; 1 is uniform.",
        lower="heads focus on fewer tokens; 0 is a single token.",
        usual="0.19 to 0.94 in BERT, 1.00 in an untrained decoder",
        worry="0.05 or less in a quarter of a layer's heads that began at 0.15 or more: entropy collapse "
        "(Zhai et al. 2023).",
        range=(0.0, 1.0), headline=("normalized_entropy",), key=("normalized_entropy",),
    ),
    entry(
        "concentration", "entropy", HEAD, "1", "Σ p²", "Simpson 1949 / Rényi-2",
        title="Concentration of attention",
        question="Do a few tokens take most of the attention?",
        higher="fewer tokens share the attention; 1 divided by it is how many would share it evenly.",
        lower="attention is spread over more tokens.",
        usual="0.02 to 0.64 in BERT, 0.05 in an untrained decoder",
        worry=_COLLAPSE,
        range=(0.0, 1.0),
    ),
    entry(
        "max_probability", "entropy", HEAD, "1", "max p", "min-entropy (Rényi-∞)",
        title="Strongest attention weight",
        question="How much attention does the most attended token get?",
        higher="the strongest token takes over.",
        lower="no token stands out.",
        usual="0.06 to 0.76 in BERT, 0.06 in an untrained decoder",
        worry=_COLLAPSE,
        range=(0.0, 1.0),
    ),
    entry(
        "max_logit", "entropy", HEAD, "logits", "largest score s_ij of the sample",
        "Dehghani et al. 2023 (ViT-22B)",
        title="Largest attention score",
        question="How large do attention scores get before softmax?",
        higher="softmax is sharper, and closer to overflow in low precision.",
        lower="softmax is softer.",
        usual="4 to 15 in BERT, with one head at 53; 0.6 to 0.9 in an untrained decoder",
        worry="200 or more after a start at 70 or less: attention saturates and training may diverge. From "
        "20,000 on, float16 is close to its overflow at 65,504 (Dehghani et al. 2023).",
        headline=("max_logit",), key=("max_logit",), summary="max",
    ),
    entry(
        "key_entropy", "entropy", HEAD, "1",
        "entropy of the attention each key receives from valid queries, / ln(keys)", _SHANNON,
        title="Entropy of received attention",
        question="Do all queries pick the same few tokens?",
        higher="all tokens receive attention; 1 is the same for each.",
        lower="all queries pick the same few tokens, seen as vertical stripes.",
        usual="0.53 to 0.99 in BERT, 0.91 in an untrained decoder",
        worry="Nothing by itself: heads that rest on special tokens have stripes. A fall in most heads of a "
        "layer means that attention depends less and less on the query.",
        range=(0.0, 1.0),
    ),
    entry(
        "learned_sink_mass", "entropy", HEAD, "1", "probability on the key-less sink column",
        "gpt-oss attention sinks",
        title="Attention on the learned sink",
        question="How often does a head choose not to attend?",
        higher="more attention goes to the sink, which adds nothing to the output.",
        lower="more attention goes to tokens.",
        usual="not measured; only models with learned sinks have it",
        worry="Near 1: the head adds next to nothing.",
        range=(0.0, 1.0),
    ),
]  # fmt: skip
