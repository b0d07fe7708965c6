"""The family ``importance``: whether the loss depends on heads."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import HEAD, entry

__all__ = ["IMPORTANCE"]

IMPORTANCE = [
    entry(
        "importance", "importance", HEAD, "loss",
        "mean over sequences of |⟨o, ∂L/∂o⟩|, o the head's output, L the sequence's loss",
        "Michel et al. 2019",
        title="Importance",
        question="Does the loss depend on the head?",
        higher="a small change of the head changes the loss more.",
        lower="the loss depends less on the head; near 0 it can be removed.",
        usual="0.0005 to 0.03 in a fine-tuning of BERT to classify; it depends on the loss",
        worry="Nothing by itself: compare the heads of one run. Those near 0 can be removed "
        "(Michel et al. 2019).",
        range=(0.0, None), headline=("importance",), key=("importance",), default=False, log_from=0.0,
    ),
]  # fmt: skip
