"""The family ``weights``: what heads read and write, whatever the inputs."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import HEAD, LAYER, entry
from lightning_geo.metrics.families.subspace import ROY
from lightning_geo.metrics.spec import ROLES, MetricSpec

__all__ = ["WEIGHTS"]

_SAPONATI = "Saponati et al. 2025, arXiv 2502.10927"
_RV = "RV coefficient, Robert & Escoufier 1976"
_NOTHING = "Nothing by itself: it says what kind of model this is, not how well it is."


def _symmetry(level: str, axes: tuple[str, ...], matrix: str, whose: str, usual: str) -> MetricSpec:
    name = f"{level}symmetry"
    return entry(
        name, "weights", axes, "1", "tr(MM) / ‖M‖²_F, M = W_qᵀ W_k".replace("M", matrix), _SAPONATI,
        title=f"Symmetry of {whose} weights",
        question="Do two tokens score each other alike?",
        higher="tokens score each other alike both ways, as bidirectional training brings; 1 is symmetric.",
        lower="scores differ by the way; about 0 for random weights, −1 where one way excludes the other.",
        usual=usual, worry=_NOTHING, range=(-1.0, 1.0), headline=(name,) if not level else (),
        self_attention=True, default=False, signed=True,
    )  # fmt: skip


def _directionality(level: str, axes: tuple[str, ...], matrix: str, whose: str, usual: str) -> MetricSpec:
    formula = "(C − R)/(C + R), C what column norms of M exceed their mean + 2 std by, R the rows'"
    return entry(
        f"{level}directionality", "weights", axes, "1", formula.replace("M", matrix), _SAPONATI,
        title=f"Directionality of {whose} weights",
        question="Do few directions decide for keys, or for queries?",
        higher="few directions decide for keys.",
        lower="below 0, few directions decide for queries.",
        usual=usual, worry=_NOTHING, range=(-1.0, 1.0), self_attention=True, default=False, signed=True,
    )  # fmt: skip


def _product(pair: str, matrix: str, verb: str, usual: tuple[str, str, str]) -> list[MetricSpec]:
    """The metrics of a product of two projections: its number of directions, and its size."""
    rank, stable, norm = f"{pair}_effective_rank", f"{pair}_stable_rank", f"{pair}_norm"
    what = {"compares": "query–key", "moves": "value–output"}[verb]
    return [
        entry(
            rank, "weights", HEAD, "dimensions",
            f"exp(entropy of σ/Σσ), σ the singular values of {matrix}", ROY,
            title=f"Effective rank of {what} weights",
            question=f"Along how many directions does the head do what it {verb}?",
            higher=f"the head {verb} along more directions.",
            lower=f"the head {verb} along fewer directions.",
            usual=usual[0], worry="Near 1: one direction is left of what the head does.",
            range=(1.0, None), headline=(rank,), default=False,
        ),
        entry(
            stable, "weights", HEAD, "dimensions", f"Σσ² / σ₁², σ the singular values of {matrix}",
            "Rudelson & Vershynin 2007",
            title=f"Stable rank of {what} weights",
            question=f"Does one direction decide what the head {verb}?",
            higher=f"more directions decide what the head {verb}.",
            lower="the strongest direction counts for more; 1 is all of it.",
            usual=usual[1], worry="Near 1: one direction decides all.",
            range=(1.0, None), default=False,
        ),
        entry(
            norm, "weights", HEAD, "1", f"‖{matrix}‖_F", "Frobenius norm",
            title=f"Size of {what} weights",
            question=f"How much does what the head {verb} weigh, whatever the inputs?",
            higher=f"what the head {verb} weighs more.",
            lower=f"what the head {verb} weighs less.",
            usual=usual[2], worry="Growth that goes on over training, or one head far above the others.",
            range=(0.0, None), default=False, log_from=0.0,
        ),
    ]  # fmt: skip


def _overlap(verb: str, usual: str, name: str, formula: str, parts: tuple[str, ...] = ()) -> MetricSpec:
    return entry(
        name, "weights", HEAD, "1", formula, _RV,
        title=f"Overlap of what heads {verb}",
        question=f"Does another head of the layer {verb} the same directions?",
        higher=f"another head {verb}s more of the same directions; 1 is the same.",
        lower=f"the head {verb}s directions of its own.",
        usual=usual, worry="Near 1: two heads share their weights or became copies, see redundancy.",
        parts=parts, range=(0.0, 1.0), default=False,
    )  # fmt: skip


WEIGHTS = [
    _symmetry("", HEAD, "M", "query–key", "0.01 to 0.49 in BERT, 0 in an untrained decoder"),
    _symmetry(
        "layer_", LAYER, "ΣM", "a layer's query–key", "0.27 to 0.63 in BERT, 0 in an untrained decoder",
    ),
    _directionality(
        "", HEAD, "M", "query–key", "−0.60 to 0.49 in BERT, −0.40 to 0.62 in an untrained decoder",
    ),
    _directionality(
        "layer_", LAYER, "ΣM", "a layer's query–key",
        "0.06 to 0.39 in BERT, −0.41 to 0.14 in an untrained decoder",
    ),
    *_product(
        "qk", "W_qᵀ W_k", "compares",
        ("26 to 31 of 32 dimensions in BERT, 31 in an untrained decoder",
         "3.8 to 17 of 32 dimensions in BERT, 15 to 18 in an untrained decoder",
         "10 to 29 in BERT, 0.9 in an untrained decoder"),
    ),
    *_product(
        "ov", "W_vᵀ W_o", "moves",
        ("30 to 32 of 32 dimensions in BERT, 31 in an untrained decoder",
         "7.2 to 20 of 32 dimensions in BERT, 15 to 18 in an untrained decoder",
         "2.9 to 11 in BERT, 0.25 in an untrained decoder"),
    ),
    _overlap(
        "read", "0.11 to 0.71 in BERT, 0.08 in an untrained decoder", "read_overlap",
        "largest tr(A_h A_h') / (‖A_h‖ ‖A_h'‖) with another head, A = WᵀW", ("query", "key", "value"),
    ),
    _overlap(
        "write", "0.08 to 0.45 in BERT, 0.08 in an untrained decoder", "write_overlap", "the same of W_o",
    ),
    entry(
        "weight_drift", "weights", HEAD, "1",
        "1 − tr(A A₀) / (‖A‖ ‖A₀‖), A = WᵀW now, A₀ at the run's start", _RV,
        title="Drift of weights since the start",
        question="How far has training turned what a head reads or writes?",
        higher="the weights read or write other directions than at the start.",
        lower="the directions are those of the start; 0 is no turn at all.",
        usual="0.00001 to 0.0005 after 60 steps of fine-tuning BERT",
        worry="A jump in a fine-tuning: what the head had learnt is overwritten.",
        parts=ROLES, range=(0.0, 1.0), headline=tuple(f"weight_drift.{role}" for role in ROLES),
        default=False,
    ),
]  # fmt: skip
