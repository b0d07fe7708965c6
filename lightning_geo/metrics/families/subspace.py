"""The family ``subspace``: in which directions heads work, and how far these have turned."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import HEAD, entry
from lightning_geo.metrics.spec import ROLES

__all__ = ["ROY", "SUBSPACE"]

ROY = "Roy & Vetterli 2007; RankMe (Garrido et al. 2023)"
_EDELMAN = "chordal distance (Edelman et al. 1998)"
_HENRY = "Henry et al. 2020 (QK-norm)"
_RANK = "Near 1 in many heads at once: rank collapse, which effective_rank shows best."
_LENGTH = "A steady rise: scores grow without bound, see max_logit (Henry et al. 2020)."

SUBSPACE = [
    entry(
        "effective_rank", "subspace", HEAD, "dimensions",
        "exp(entropy of σ/Σσ), σ = √λ of the centred covariance", ROY,
        title="Effective rank",
        question="Over how many directions do a head's vectors spread?",
        higher="the vectors spread over more directions.",
        lower="they come down to few directions.",
        usual="21 to 31 of 32 dimensions in BERT, and 22 to 31 in an untrained decoder",
        worry="1.5 or less in a quarter of a layer's heads that began at 3 or more: rank collapse "
        "(Noci et al. 2022).",
        parts=ROLES, range=(1.0, None), headline=tuple(f"effective_rank.{role}" for role in ROLES),
        key=("effective_rank.output",),
    ),
    entry(
        "participation_ratio", "subspace", HEAD, "dimensions", "(Σλ)² / Σλ²", "Gao et al. 2017",
        title="Participation ratio",
        question="Over how many directions does most of the variance spread?",
        higher="more directions carry the variance.",
        lower="fewer directions carry it; strong ones count more than in effective_rank.",
        usual="4 to 25 of 32 dimensions in BERT, 4 to 26 in an untrained decoder",
        worry=_RANK, parts=ROLES, range=(1.0, None),
    ),
    entry(
        "stable_rank", "subspace", HEAD, "dimensions", "Σλ / λ₁", "Rudelson & Vershynin 2007",
        title="Stable rank",
        question="How much variance is there beside the strongest direction?",
        higher="other directions carry more beside the strongest.",
        lower="the strongest direction carries more; 1 is all of it.",
        usual="2.1 to 14 of 32 dimensions in BERT, 2.1 to 15 in an untrained decoder",
        worry=_RANK, parts=ROLES, range=(1.0, None),
    ),
    entry(
        "top_share", "subspace", HEAD, "1", "λ₁ / Σλ", "explained variance, PCA",
        title="Share of the strongest direction",
        question="How much of the variance lies in one direction?",
        higher="one direction dominates.",
        lower="variance is spread over more directions.",
        usual="0.07 to 0.48 in BERT, 0.06 to 0.47 in an untrained decoder",
        worry=_RANK, parts=ROLES, range=(0.0, 1.0),
    ),
    entry(
        "qk_alignment", "subspace", HEAD, "1",
        "‖U_qᵀ U_k‖²_F / r: mean cos² of the principal angles, chance level r/head_dim",
        "Björck & Golub 1973",
        title="Alignment of queries and keys",
        question="Do queries and keys vary in the same directions?",
        higher="queries and keys vary in the same directions.",
        lower="they vary in different directions; the chance level is r/head_dim.",
        usual="0.27 to 0.88 in BERT; 0.21 to 0.33 in an untrained decoder, whose chance level is 0.25",
        worry="Nothing by itself. A trained head that falls to the chance level has come apart.",
        range=(0.0, 1.0), headline=("qk_alignment",), key=("qk_alignment",),
    ),
    entry(
        "drift", "subspace", HEAD, "1", "√(1 − ‖Uᵀ U₀‖²_F / r) against the baseline", _EDELMAN,
        title="Drift since the start",
        question="How far has a head's subspace turned since the run began?",
        higher="the subspace is further from where it began; 1 is orthogonal.",
        lower="the subspace is nearer to where it began; 0 is the same.",
        usual="0.01 to 0.80 after 60 steps of fine-tuning BERT, above 0.4 in half of the heads",
        worry="Near 1 in a fine-tuning: nothing is left of the directions that the head worked in.",
        parts=ROLES, range=(0.0, 1.0), headline=tuple(f"drift.{role}" for role in ROLES),
        key=("drift.output",),
    ),
    entry(
        "velocity", "subspace", HEAD, "1", "√(1 − ‖Uᵀ U_prev‖²_F / r) against the sample before", _EDELMAN,
        title="Turning between samples",
        question="How far has a head's subspace turned since the sample before?",
        higher="the subspace turns faster, or samples lie further apart.",
        lower="the subspace settles.",
        usual="up to 0.40 early in a fine-tuning of BERT, 0.00 to 0.02 at its end, samples 4 steps apart",
        worry="A rise where the learning rate does not rise: training no longer settles.",
        parts=ROLES, range=(0.0, 1.0), key=("velocity.output",),
    ),
    entry(
        "query_norm", "subspace", HEAD, "1", "mean ‖q‖ over valid tokens", _HENRY,
        title="Length of queries",
        question="How long are a head's queries?",
        higher="scores grow through the length of queries.",
        lower="scores shrink.",
        usual="3.9 to 10 in BERT, 2.1 to 2.3 in an untrained decoder",
        worry=_LENGTH, range=(0.0, None), log_from=0.0,
    ),
    entry(
        "key_norm", "subspace", HEAD, "1", "mean ‖k‖ over valid tokens", _HENRY,
        title="Length of keys",
        question="How long are a head's keys?",
        higher="scores grow through the length of keys.",
        lower="scores shrink.",
        usual="4.4 to 10 in BERT, 2.1 to 2.3 in an untrained decoder",
        worry=_LENGTH, range=(0.0, None), log_from=0.0,
    ),
    entry(
        "qk_cosine", "subspace", HEAD, "1", "mean over all (i, j) of cos(q_i, k_j)", _HENRY,
        title="Mean cosine of queries and keys",
        question="Do queries and keys lean the same way as a whole?",
        higher="queries and keys share a direction, which raises all scores.",
        lower="below 0, they lean apart, which lowers all scores.",
        usual="−0.26 to 0.02 in BERT, −0.06 to 0.07 in an untrained decoder",
        worry="Ever further from 0: scores grow through the angle.",
        range=(-1.0, 1.0), signed=True,
    ),
]  # fmt: skip
