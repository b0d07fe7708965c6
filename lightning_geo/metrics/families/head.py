"""The family ``head``: whether the heads of a layer do the same."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import HEAD, LAYER, entry

__all__ = ["HEADS"]

HEADS = [
    entry(
        "redundancy", "head", HEAD, "1",
        "largest linear CKA of the head's output with another head of the layer", "Kornblith et al. 2019",
        title="Redundancy",
        question="Does another head of the layer do the same?",
        higher="another head writes nearly the same; 1 is a twin.",
        lower="the head does something of its own.",
        usual="0.21 to 0.60 in BERT, 0.73 to 0.91 in an untrained decoder",
        worry="0.9999 or more after a start at 0.99 or less: two heads became copies "
        "(Kornblith et al. 2019).",
        range=(0.0, 1.0), headline=("redundancy",), key=("redundancy",),
    ),
    entry(
        "complementarity", "head", LAYER, "1",
        "participation ratio of the concatenated heads / sum of the heads' own", "Gao et al. 2017",
        title="Complementarity",
        question="Do the heads of a layer add directions to each other?",
        higher="each head adds directions of its own; 1 is no overlap, and heads of equal weight.",
        lower="heads share directions, or one head outweighs the others.",
        usual="0.18 to 0.40 in BERT, 0.09 to 0.11 in an untrained decoder",
        worry="A fall over training: heads become redundant, see redundancy.",
        range=(0.0, 1.0),
    ),
]  # fmt: skip
