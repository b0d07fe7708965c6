"""The family ``score_spectra``: the numbers of *The geometry of BERT*."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import HEAD, PAPER, entry
from lightning_geo.metrics.spec import MetricSpec

__all__ = ["SCORE_SPECTRA"]

_NOTHING = "Nothing by itself: it is there to lay beside the figures of The geometry of BERT."


def _von_neumann(symmetry: str, whose: str, matrix: str, usual: tuple[str, str]) -> list[MetricSpec]:
    """The entropy of a matrix of scores, and the same as the paper normalises it."""
    looks = {"range": (0.0, None), "self_attention": True, "default": False}
    formula = f"−Σ a ln a, a = {{}}, λ the eigenvalues of {matrix}"
    return [
        entry(
            f"von_neumann_entropy{symmetry}", "score_spectra", HEAD, "nats",
            formula.format("|λ|² / Σ|λ|²"), PAPER,
            title=f"Von Neumann entropy of {whose}",
            question="Over how many directions do the scores of a sequence spread?",
            higher="scores spread over more directions.",
            lower="the scores of a sequence come down to fewer directions.",
            usual=usual[0], worry=_NOTHING, **looks,
        ),
        entry(
            f"von_neumann_entropy{symmetry}.paper", "score_spectra", HEAD, "nats",
            formula.format("|λ| / √Σ|λ|²"), PAPER,
            title=f"Von Neumann entropy of {whose}, as in the paper",
            question="Over how many directions do scores spread, as the paper's authors normalise it?",
            higher="scores spread over more directions; no entropy, since Σa is not 1.",
            lower="the scores of a sequence come down to fewer directions.",
            usual=usual[1], worry=_NOTHING, **looks,
        ),
    ]  # fmt: skip


SCORE_SPECTRA = [
    entry(
        "score_entropy", "score_spectra", HEAD, "nats",
        "−Σ h ln h, h a 20-bin histogram of q·k over visible pairs, between their extremes", PAPER,
        title="Entropy of scores",
        question="How evenly are scores spread between their extremes?",
        higher="scores spread more evenly; at most ln 20 = 3.0.",
        lower="a few scores lie far from all others.",
        usual="1.9 to 2.6 in BERT, 2.3 to 2.5 in an untrained decoder",
        worry=_NOTHING, range=(0.0, None), default=False,
    ),
    *_von_neumann(
        "", "scores", "QKᵀ",
        ("0.4 to 2.4 in BERT, 1.4 to 3.2 in an untrained decoder",
         "2.8 to 7.2 in BERT, 6.0 to 8.8 in an untrained decoder"),
    ),
    *_von_neumann(
        ".symmetric", "symmetric scores", "(QKᵀ + KQᵀ)/2",
        ("0.5 to 2.5 in BERT, 1.8 to 3.4 in an untrained decoder",
         "3.4 to 8.9 in BERT, 8.7 to 13 in an untrained decoder"),
    ),
]  # fmt: skip
