"""The table of metrics. A new metric is one entry here, one function in ``functional``, one test."""

from __future__ import annotations

from lightning_geo.metrics.gates import GATES, MIXED
from lightning_geo.metrics.integrity import MASKS, UPDATES
from lightning_geo.metrics.spec import ROLES, STAGES, MetricSpec

__all__ = ["CATALOG"]

_HEAD = ("layer", "head")
_LAYER = ("layer",)
_SHANNON = "Shannon 1948, of the attention probabilities"
_ROY = "Roy & Vetterli 2007; RankMe (Garrido et al. 2023)"
_ETHAYARAJH = "Ethayarajh 2019 (anisotropy)"
_PAPER = "The geometry of BERT, arXiv 2502.12033"
_CLARK = "Clark et al. 2019 (what attention heads look at)"


def _row(
    name: str,
    family: str,
    unit: str,
    formula: str,
    meaning: str,
    source: str,
    range: tuple[float | None, float | None] = (0.0, 1.0),
    *,
    headline: bool = False,
) -> MetricSpec:
    """Mean over valid query rows, per head: most of the entropy and pattern families."""
    return MetricSpec(
        name, family, _HEAD, unit, formula, meaning, source,
        range=range, headline=(name,) if headline else (), self_attention=family == "pattern",
    )  # fmt: skip


_ENTROPY = [
    _row("entropy", "entropy", "nats", "−Σ p ln p",
         "A fall: heads focus on fewer keys; near 0 over many layers: entropy collapse.",
         _SHANNON, (0.0, None), headline=True),
    _row("normalized_entropy", "entropy", "1", "entropy / ln(visible keys), rows with ≥ 2 visible keys",
         "1 is uniform attention, 0 a single key; comparable across lengths.", _SHANNON, headline=True),
    _row("concentration", "entropy", "1", "Σ p²",
         "A rise: fewer keys share the attention; its inverse is an effective number of keys.",
         "Simpson 1949 / Rényi-2"),
    _row("max_probability", "entropy", "1", "max p",
         "A rise: the strongest key takes over.", "min-entropy (Rényi-∞)"),
    MetricSpec("max_logit", "entropy", _HEAD, "logits", "largest score s_ij of the sample",
               "A steady rise announces entropy collapse and overflow in low precision.",
               "Dehghani et al. 2023 (ViT-22B)", headline=("max_logit",), summary="max"),
    MetricSpec("key_entropy", "entropy", _HEAD, "1",
               "entropy of the attention each key receives from valid queries, / ln(keys)",
               "Low: vertical stripes, all queries pick the same few keys.", _SHANNON,
               range=(0.0, 1.0)),
    _row("learned_sink_mass", "entropy", "1", "probability on the key-less sink column",
         "A rise: the head opts out of attending more often.", "gpt-oss attention sinks"),
]  # fmt: skip

_PATTERN = [
    _row("self_mass", "pattern", "1", "p_ii", "A rise: tokens look at themselves.", _CLARK, headline=True),
    _row("previous_mass", "pattern", "1", "p_{i,i−1}", "Near 1: a previous-token head.", _CLARK,
         headline=True),
    _row("next_mass", "pattern", "1", "p_{i,i+1}", "Near 1: a next-token head.", _CLARK),
    _row("first_mass", "pattern", "1", "p at the sequence's first valid token",
         "A rise: attention parks on the first token, a sink.", "Xiao et al. 2023 (attention sinks)",
         headline=True),
    _row("backward_mass", "pattern", "1", "Σ_{j<i} p_ij", "A rise: the head reads the past.", _PAPER),
    _row("forward_mass", "pattern", "1", "Σ_{j>i} p_ij", "A rise: the head reads ahead.", _PAPER),
    _row("attention_distance", "pattern", "tokens", "Σ_j p_ij |i−j|",
         "A rise: attention reaches further; a fall: it becomes local.",
         "Sukhbaatar et al. 2019; Raghu et al. 2021", (0.0, None), headline=True),
    _row("special_mass", "pattern", "1", "Σ p on special tokens",
         "A rise: the head parks on separators and does nothing.", _CLARK),
]  # fmt: skip

_CONE = [
    MetricSpec(name, "cone", axes, unit, formula, meaning, source, parts=parts,
               range=range, headline=headline)
    for base, unit, formula, meaning, source, range in (
        ("cone", "1", "‖Σ_i x̂_i‖ / n (mean resultant length)",
         "Near 1: all tokens point the same way, representations collapse into a narrow cone.",
         _PAPER, (0.0, 1.0)),
        ("cone_index", "1", "‖Σ_i x̂_i‖", "As cone, unnormalised: grows with the sequence length.",
         _PAPER, (0.0, None)),
        ("mean_cosine", "1", "(I² − n) / (n(n−1)), I = ‖Σ_i x̂_i‖",
         "Average cosine of two tokens: 0 isotropic, 1 collapsed.", _ETHAYARAJH, (-1.0, 1.0)),
    )
    for name, axes, parts, headline in (
        (base, _LAYER, STAGES, ("cone.output",) if base == "cone" else ()),
        (f"{base}.head", _HEAD, (), ()),
    )
]  # fmt: skip

_SUBSPACE = [
    MetricSpec("effective_rank", "subspace", _HEAD, "dimensions",
               "exp(entropy of σ/Σσ), σ = √λ of the centred covariance",
               "A rise: the role spreads over more directions; a fall: it collapses to few.",
               _ROY, ROLES, (1.0, None), tuple(f"effective_rank.{r}" for r in ROLES)),
    MetricSpec("participation_ratio", "subspace", _HEAD, "dimensions", "(Σλ)² / Σλ²",
               "As effective_rank, dominated by the strongest directions.", "Gao et al. 2017",
               ROLES, (1.0, None)),
    MetricSpec("stable_rank", "subspace", _HEAD, "dimensions", "Σλ / λ₁",
               "Near 1: one direction carries nearly everything.", "Rudelson & Vershynin 2007",
               ROLES, (1.0, None)),
    MetricSpec("top_share", "subspace", _HEAD, "1", "λ₁ / Σλ",
               "A rise: one direction dominates.", "explained variance, PCA", ROLES,
               (0.0, 1.0)),
    MetricSpec("qk_alignment", "subspace", _HEAD, "1",
               "‖U_qᵀ U_k‖²_F / r: mean cos² of the principal angles, chance level r/head_dim",
               "A rise: queries and keys come to live in the same directions.", "Björck & Golub 1973",
               range=(0.0, 1.0), headline=("qk_alignment",)),
    MetricSpec("drift", "subspace", _HEAD, "1", "√(1 − ‖Uᵀ U₀‖²_F / r) against the baseline",
               "How far the subspace has moved since the start: 0 same, 1 orthogonal.",
               "chordal distance (Edelman et al. 1998)", ROLES, (0.0, 1.0),
               tuple(f"drift.{r}" for r in ROLES)),
    MetricSpec("velocity", "subspace", _HEAD, "1", "√(1 − ‖Uᵀ U_prev‖²_F / r) against the sample before",
               "How fast the subspace turns now; a fall: it settles.",
               "chordal distance (Edelman et al. 1998)", ROLES, (0.0, 1.0)),
    MetricSpec("query_norm", "subspace", _HEAD, "1", "mean ‖q‖ over valid tokens",
               "A rise: scores grow through length.", "Henry et al. 2020 (QK-norm)",
               range=(0.0, None)),
    MetricSpec("key_norm", "subspace", _HEAD, "1", "mean ‖k‖ over valid tokens",
               "A rise: scores grow through length.", "Henry et al. 2020 (QK-norm)",
               range=(0.0, None)),
    MetricSpec("qk_cosine", "subspace", _HEAD, "1", "mean over all (i, j) of cos(q_i, k_j)",
               "Away from 0: queries and keys share a common offset; scores grow through angle.",
               "Henry et al. 2020 (QK-norm)", range=(-1.0, 1.0), signed=True),
]  # fmt: skip

_STREAM = [
    MetricSpec("hidden_norm", "stream", _LAYER, "1", "mean ‖x‖ of the layer's output",
               "A rise through depth: later layers weigh less in the sum.",
               "Xiong et al. 2020 (pre-norm growth)", range=(0.0, None)),
    MetricSpec("skewness", "stream", _LAYER, "1", "third standardised moment over features",
               "Away from 0: outlier features on one side.", "moments"),
    MetricSpec("kurtosis", "stream", _LAYER, "1", "fourth standardised moment over features − 3",
               "A rise: a few outlier features carry the stream.",
               "Bondarenko et al. 2023 (outliers)", range=(-2.0, None)),
    MetricSpec("update_ratio", "stream", _LAYER, "1", "‖output − input‖ / ‖input‖",
               "How much a layer changes its input; near 0: it is idle.",
               "Liu et al. 2023 (Deja Vu)", range=(0.0, None), headline=("update_ratio",)),
]  # fmt: skip

_HEADS = [
    MetricSpec("redundancy", "head", _HEAD, "1",
               "largest linear CKA of the head's output with another head of the layer",
               "Near 1: another head does the same.", "Kornblith et al. 2019",
               range=(0.0, 1.0), headline=("redundancy",)),
    MetricSpec("complementarity", "head", _LAYER, "1",
               "participation ratio of the concatenated heads / sum of the heads' own",
               "A fall: heads share directions instead of adding some, or one head outweighs the "
        "others.", "Gao et al. 2017",
               range=(0.0, 1.0)),
]  # fmt: skip

_SAPONATI = "Saponati et al. 2025, arXiv 2502.10927"
_RV = "RV coefficient, Robert & Escoufier 1976"

_WEIGHTS = [
    MetricSpec(f"{level}{name}", "weights", axes, "1", formula.replace("M", matrix), meaning, _SAPONATI,
               range=(-1.0, 1.0), headline=("symmetry",) * (f"{level}{name}" == "symmetry"),
               self_attention=True, default=False, signed=True)
    for name, formula, meaning in (
        ("symmetry", "tr(MM) / ‖M‖²_F, M = W_qᵀ W_k",
         "1: tokens score each other alike both ways, as bidirectional training brings; about 0: random "
         "weights; −1: one way excludes the other."),
        ("directionality",
         "(C − R)/(C + R), C what column norms of M exceed their mean + 2 std by, R the rows'",
         "A rise: few directions decide for keys; a fall: for queries."),
    )
    for level, axes, matrix in (("", _HEAD, "M"), ("layer_", _LAYER, "ΣM"))
] + [
    MetricSpec(f"{pair}_{name}", "weights", _HEAD, unit, formula.format(matrix), meaning.format(verb), source,
               range=range, headline=(f"{pair}_{name}",) * (name == "effective_rank"),
               default=False)
    for pair, matrix, verb in (("qk", "W_qᵀ W_k", "compares"), ("ov", "W_vᵀ W_o", "moves"))
    for name, unit, formula, meaning, source, range in (
        ("effective_rank", "dimensions", "exp(entropy of σ/Σσ), σ the singular values of {}",
         "A fall: the head {} along fewer directions.", _ROY, (1.0, None)),
        ("stable_rank", "dimensions", "Σσ² / σ₁², σ the singular values of {}",
         "Near 1: one direction decides what the head {}.", "Rudelson & Vershynin 2007", (1.0, None)),
        ("norm", "1", "‖{}‖_F", "A rise: what the head {} weighs more, whatever the inputs.",
         "Frobenius norm", (0.0, None)),
    )
] + [
    MetricSpec("read_overlap", "weights", _HEAD, "1",
               "largest tr(A_h A_h') / (‖A_h‖ ‖A_h'‖) with another head, A = WᵀW",
               "Near 1: another head of the layer reads the same directions.", _RV,
               ("query", "key", "value"), (0.0, 1.0), default=False),
    MetricSpec("write_overlap", "weights", _HEAD, "1", "the same of W_o",
               "Near 1: another head of the layer writes the same directions.", _RV,
               range=(0.0, 1.0), default=False),
    MetricSpec("weight_drift", "weights", _HEAD, "1",
               "1 − tr(A A₀) / (‖A‖ ‖A₀‖), A = WᵀW now, A₀ at the run's start",
               "How far training has turned what the head reads or writes: 0 not at all.", _RV,
               ROLES, (0.0, 1.0), tuple(f"weight_drift.{r}" for r in ROLES), default=False),
]  # fmt: skip

_PROJECTION = [
    MetricSpec("projection_strength", "projection", _HEAD, "1",
               "mean ‖P x‖²/‖x‖², P onto the rows of W, x what W is given; chance level head_dim/width",
               "A rise: tokens move into what the head reads.", _PAPER, ("query", "key", "value"),
               (0.0, 1.0), tuple(f"projection_strength.{r}" for r in ("query", "key", "value")),
               default=False),
] + [
    MetricSpec(f"{role}_value_angle", "projection", _HEAD, "radians",
               f"mean principal angle between the row spaces of W_{role[0]} and W_v",
               meaning, "Björck & Golub 1973", range=(0.0, 1.5709), self_attention=role == "query",
               default=False)
    for role, meaning in (
        ("query", "A fall: the head copies the directions that its queries read."),
        ("key", "A fall: the head copies the directions that it is matched on."),
    )
] + [
    MetricSpec("score_norm_share", "projection", _HEAD, "1",
               "Cov(t, ln|q·k|) / Var(ln|q·k|) over visible pairs, t = ln‖q‖, ln‖k‖ or ln|cos|",
               "The three add to 1; a rise of a length's share: long vectors decide, wherever they point.",
               "covariance shares of a sum", ("query", "key", "direction"), default=False,
               signed=True),
]  # fmt: skip

_GATES = [
    MetricSpec("gate", "gates", _HEAD, "1",
               "how far a head is inside each gate's threshold: the least fulfilled of its conditions",
               "The gate of the largest margin, if it is not negative, is the head's; a change of sign: the "
               "head becomes another, or mixed.", _PAPER, GATES, (-1.0, 1.0), self_attention=True,
               default=False, signed=True),
    MetricSpec("gate_count", "gates", _LAYER, "heads", "heads of the layer whose gate it is",
               "A rise: more heads of the layer do the same kind of thing.", _PAPER,
               (*GATES, MIXED), (0.0, None), tuple(f"gate_count.{g}" for g in (*GATES, MIXED)),
               self_attention=True, default=False),
]  # fmt: skip

_SCORE_SPECTRA = [
    MetricSpec("score_entropy", "score_spectra", _HEAD, "nats",
               "−Σ h ln h, h a 20-bin histogram of q·k over visible pairs, between their extremes",
               "A fall: a few scores lie far from all others; near ln 20: they spread evenly.",
               _PAPER, range=(0.0, None), default=False),
] + [
    MetricSpec(f"von_neumann_entropy{suffix}", "score_spectra", _HEAD, "nats",
               f"−Σ a ln a, a = {share}, λ the eigenvalues of {matrix}", meaning, _PAPER,
               range=(0.0, None), self_attention=True, default=False)
    for symmetry, matrix in (("", "QKᵀ"), (".symmetric", "(QKᵀ + KQᵀ)/2"))
    for suffix, share, meaning in (
        (symmetry, "|λ|² / Σ|λ|²", "A fall: the scores of a sequence come down to fewer directions."),
        (f"{symmetry}.paper", "|λ| / √Σ|λ|²",
         "A rise: scores spread over more directions. The authors' own normalisation, to lay beside their "
         "figures: no entropy, since Σa is not 1."),
    )
]  # fmt: skip

_IMPORTANCE = [
    MetricSpec("importance", "importance", _HEAD, "loss",
               "mean over sequences of |⟨o, ∂L/∂o⟩|, o the head's output, L the sequence's loss",
               "A rise: the loss comes to depend on the head; near 0: it can be removed.",
               "Michel et al. 2019", range=(0.0, None), headline=("importance",),
               default=False),
]  # fmt: skip

#: Every metric by name, in the order in which records list them.
CATALOG: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        *_ENTROPY,
        *_PATTERN,
        *_CONE,
        *_SUBSPACE,
        *_STREAM,
        *_HEADS,
        *UPDATES,
        *MASKS,
        *_WEIGHTS,
        *_PROJECTION,
        *_GATES,
        *_IMPORTANCE,
        *_SCORE_SPECTRA,
    )
}
