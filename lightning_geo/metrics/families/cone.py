"""The family ``cone``: whether representations point the same way."""

from __future__ import annotations

from typing import Any

from lightning_geo.metrics.families.entry import HEAD, LAYER, PAPER, entry
from lightning_geo.metrics.spec import STAGES, MetricSpec

__all__ = ["CONE"]

_ETHAYARAJH = "Ethayarajh 2019 (anisotropy)"
_WORRY = (
    "0.97 or more at a layer's output after a start at 0.87 or less: representations collapse (The geometry "
    "of BERT; Noci et al. 2022). Early in training from scratch it may pass."
)


def _pair(
    base: str, formula: str, source: str, range: tuple[float | None, float | None], stages: dict[str, str],
    heads: dict[str, str], **words: Any,
) -> list[MetricSpec]:  # fmt: skip
    """The metric of the layers' stages, and of each head's output."""
    key = ("cone.output",) if base == "cone" else ()
    return [
        entry(base, "cone", LAYER, "1", formula, source, range=range, parts=STAGES, headline=key,
              key=key, **words, **stages),
        entry(f"{base}.head", "cone", HEAD, "1", formula, source, range=range, **words, **heads),
    ]  # fmt: skip


CONE = [
    *_pair(
        "cone", "‖Σ_i x̂_i‖ / n (mean resultant length)", PAPER, (0.0, 1.0),
        {
            "title": "Narrowness of the cone",
            "question": "Do all tokens of a layer point the same way?",
            "usual": "0.26 to 0.56 at inputs and outputs of BERT's layers, 0.56 to 0.86 behind attention; "
            "outputs up to 0.91 after 60 steps of fine-tuning",
            "worry": _WORRY,
        },
        {
            "title": "Narrowness of a head's cone",
            "question": "Does a head write the same direction for every token?",
            "usual": "0.41 to 0.93 in BERT, 0.82 to 0.97 in an untrained decoder",
            "worry": "Near 1 and rising: the head adds nearly the same vector everywhere.",
        },
        higher="vectors point more nearly the same way; 1 is one direction, a collapsed cone.",
        lower="directions differ more; 0 is no common direction.",
    ),
    *_pair(
        "cone_index", "‖Σ_i x̂_i‖", PAPER, (0.0, None),
        {
            "title": "Cone index",
            "question": "How long is the sum of all tokens' directions?",
            "usual": "25 to 53 at inputs and outputs of BERT's layers, for 96 tokens: their number × cone",
            "worry": "As cone, whose numbers do not depend on the length of the sequences.",
        },
        {
            "title": "Cone index of a head",
            "question": "How long is the sum of the directions that a head writes?",
            "usual": "40 to 89 in BERT, for 96 tokens",
            "worry": "As cone.head, whose numbers do not depend on the length of the sequences.",
        },
        higher="vectors point more nearly the same way, or there are more of them.",
        lower="directions differ more, or there are fewer vectors.",
    ),
    *_pair(
        "mean_cosine", "(I² − n) / (n(n−1)), I = ‖Σ_i x̂_i‖", _ETHAYARAJH, (-1.0, 1.0),
        {
            "title": "Mean cosine of tokens",
            "question": "How alike are the directions of two tokens, on average?",
            "usual": "0.06 to 0.30 at inputs and outputs of BERT's layers, 0.31 to 0.74 behind attention",
            "worry": "Near 1: all tokens became alike. It moves with cone, near the square of it.",
        },
        {
            "title": "Mean cosine of a head's outputs",
            "question": "How alike are two vectors that a head writes, on average?",
            "usual": "0.16 to 0.86 in BERT, 0.67 to 0.94 in an untrained decoder",
            "worry": "Near 1 and rising: the head adds nearly the same vector everywhere.",
        },
        higher="vectors are more alike; 1 is collapsed.",
        lower="vectors are less alike; 0 is isotropic.",
    ),
]  # fmt: skip
