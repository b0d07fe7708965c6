"""Metrics of a head's parameters: the directions that it reads and writes, without any input.

See :mod:`lightning_geo.functional.head_weights` for M, N and the shapes of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional._tensors import as_float, exact_dtype
from lightning_geo.functional.head_products import HeadProducts
from lightning_geo.functional.head_weights import OV, QK, HeadWeights
from lightning_geo.functional.spectrum import effective_rank, stable_rank
from lightning_geo.kernels.workspace import scratch, where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.device_copy import without_waiting
from lightning_geo.utils.shapes import Float

__all__ = [
    "HeadWeights",
    "directionality",
    "layer_directionality",
    "layer_symmetry",
    "ov_effective_rank",
    "ov_norm",
    "ov_stable_rank",
    "qk_effective_rank",
    "qk_norm",
    "qk_stable_rank",
    "read_overlap",
    "symmetry",
    "weight_drift",
    "write_overlap",
]

_QK_GRAMS, _OV_GRAMS = (tuple(f"gram.{role}" for role in roles) for roles in (QK, OV))


@computes("symmetry", reads=("weights",), roles=QK)
def symmetry(weights: HeadWeights) -> Float[Tensor, " heads"]:
    r"""Whether a head scores a pair of tokens alike in both directions.

    .. math:: \mathrm{tr}(M M) \,/\, \|M\|_F^2

    Args:
        weights: With query and key.

    Returns:
        ``[H]`` in [-1, 1]: 1 where M is symmetric, -1 where it is antisymmetric, about 0 for random weights.

    Source: Saponati et al. 2025, arXiv 2502.10927.
    """
    across = weights.across("key", "query").to(exact_dtype(weights["query"]))
    # rounding in a D×D product: the norm from the same type
    square = weights.each(weights.gram("query")) * weights.each(weights.gram("key"))
    trace = (across * across.mT).sum((-2, -1))
    return (trace / square.sum((-2, -1), dtype=trace.dtype)).clamp(-1, 1)


@computes("directionality", reads=("weights",), roles=QK)
def directionality(weights: HeadWeights) -> Float[Tensor, " heads"]:
    r"""Whether a few stream directions stand out on the key side of M or on its query side.

    .. math:: \frac{C - R}{C + R}, \quad C = \sum_j \max(c_j - t_c, 0), \quad t_c = \bar c + 2\, s_c

    over the column norms c of M (key side), R the same over its row norms (query side), s the sample
    standard deviation (n − 1).

    Args:
        weights: With query and key.

    Returns:
        ``[H]`` in [-1, 1]; 0 where nothing stands out. The figures of Saponati et al. show the opposite sign.

    Source: Saponati et al. 2025, arXiv 2502.10927.
    """
    query, key = weights["query"], weights["key"]
    shared = weights.heads // key.shape[0]
    # ‖M e_j‖² = w_kjᵀ (W_q W_qᵀ) w_kj
    grams = weights.gram("query").unflatten(0, (-1, shared)).flatten(1, 2)
    out = scratch("product", (*grams.shape[:2], key.shape[2]), key)
    products = torch.bmm(grams, key, out=out).view(key.shape[0], shared, *key.shape[1:])
    columns = products.mul_(key[:, None]).sum(-2).flatten(0, 1)
    grouped, out = query.unflatten(0, (-1, shared)), scratch("product", tuple(key.shape), key)
    rows = torch.stack(
        [
            torch.bmm(weights.gram("key"), grouped[:, i], out=out).mul_(grouped[:, i]).sum(-2)
            for i in range(shared)
        ],
        dim=1,
    ).flatten(0, 1)
    return _direction(columns.clamp(min=0).sqrt(), rows.clamp(min=0).sqrt())


def _direction(
    columns: Float[Tensor, "*batch d"], rows: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch"]:
    """(C − R)/(C + R) of norms ``[..., d]``; 0 where nothing stands out."""
    over, under = (
        (x - (x.mean(-1, keepdim=True) + 2 * x.std(-1, keepdim=True))).clamp(min=0).sum(-1)
        for x in (columns, rows)
    )
    total = over + under
    return torch.where(total == 0, 0.0, (over - under) / torch.where(total == 0, 1.0, total))


@computes("layer_symmetry", reads=("weights",), roles=QK)
def layer_symmetry(weights: HeadWeights) -> Float[Tensor, ""]:
    """Compute :func:`symmetry` of a layer's M, summed over its heads: a scalar."""
    trace, columns, _ = weights.layer_form
    return (trace / columns.square().sum(dtype=trace.dtype)).clamp(-1, 1)


@computes("layer_directionality", reads=("weights",), roles=QK)
def layer_directionality(weights: HeadWeights) -> Float[Tensor, ""]:
    """Compute :func:`directionality` of a layer's M, summed over its heads: a scalar."""
    _, columns, rows = weights.layer_form
    return _direction(columns, rows)


@computes("qk_effective_rank", reads=("weights",), roles=QK, products=_QK_GRAMS)
def qk_effective_rank(weights: HeadProducts) -> Float[Tensor, " heads"]:
    """Effective rank ``[H]`` of M (entropy of its singular values, Roy & Vetterli 2007)."""
    return effective_rank(weights.qk_spectrum.sqrt())


@computes("qk_stable_rank", reads=("weights",), roles=QK, products=_QK_GRAMS)
def qk_stable_rank(weights: HeadProducts) -> Float[Tensor, " heads"]:
    """Stable rank ``[H]`` of M: ‖M‖²_F / σ₁²."""
    return stable_rank(weights.qk_spectrum)


@computes("qk_norm", reads=("weights",), roles=QK, products=_QK_GRAMS)
def qk_norm(weights: HeadProducts) -> Float[Tensor, " heads"]:
    """Frobenius norm ``[H]`` of M."""
    return weights.qk_spectrum.sum(-1).sqrt()


@computes("ov_effective_rank", reads=("weights",), roles=OV, products=_OV_GRAMS)
def ov_effective_rank(weights: HeadProducts) -> Float[Tensor, " heads"]:
    """Effective rank ``[H]`` of N (entropy of its singular values, Roy & Vetterli 2007)."""
    return effective_rank(weights.ov_spectrum.sqrt())


@computes("ov_stable_rank", reads=("weights",), roles=OV, products=_OV_GRAMS)
def ov_stable_rank(weights: HeadProducts) -> Float[Tensor, " heads"]:
    """Stable rank ``[H]`` of N: ‖N‖²_F / σ₁²."""
    return stable_rank(weights.ov_spectrum)


@computes("ov_norm", reads=("weights",), roles=OV, products=_OV_GRAMS)
def ov_norm(weights: HeadProducts) -> Float[Tensor, " heads"]:
    """Frobenius norm ``[H]`` of N."""
    return weights.ov_spectrum.sum(-1).sqrt()


@computes("read_overlap", reads=("weights",))
def read_overlap(weights: HeadWeights, role: str) -> Float[Tensor, " heads"]:
    r"""How well the most similar other head of the layer reads the same directions.

    .. math:: \max_{h' \ne h} \frac{\mathrm{tr}(A_h A_{h'})}{\|A_h\|_F \, \|A_{h'}\|_F}, \quad A = W^\top W

    Args:
        weights: With that role; where query heads share a key head, the other key heads are compared.
        role: Of :data:`~lightning_geo.metrics.spec.ROLES`.

    Returns:
        ``[H]`` in [0, 1]; NaN where there is no other head.

    Source: Robert & Escoufier 1976 (RV coefficient).
    """
    overlap = weights.overlap(role)
    itself = torch.eye(overlap.shape[0], dtype=torch.bool, device=overlap.device)
    others = torch.where(itself | overlap.isnan(), -1.0, overlap).amax(-1)
    defined = (others >= 0) & ~overlap.diagonal().isnan()
    return weights.each(where_defined(defined, others))


@computes("write_overlap", reads=("weights",), roles=("output",))
def write_overlap(weights: HeadWeights) -> Float[Tensor, " heads"]:
    """Compute :func:`read_overlap` of the directions that heads write: ``[H]``."""
    return read_overlap(weights, "output")


@computes("weight_drift", reads=("weights",))
def weight_drift(weights: HeadWeights, role: str) -> Float[Tensor, " heads"]:
    r"""How far the directions that a head reads or writes have moved, with their weights.

    .. math:: 1 - \frac{\mathrm{tr}(A A_0)}{\|A\|_F \, \|A_0\|_F}, \quad A = W^\top W

    in the stream, so that a turned read direction counts; a rotation within the head's own space, or
    a change of scale, does not.

    Args:
        weights: With that role, and with ``start``.
        role: Of :data:`~lightning_geo.metrics.spec.ROLES`.

    Returns:
        ``[H]`` in [0, 1]; NaN without a start of the same shape.

    Source: Robert & Escoufier 1976 (RV coefficient).
    """
    now = weights[role]
    start = None if weights.start is None else weights.start.get(role)
    if start is None or start.shape[0] != now.shape[0] or start.shape[2] != now.shape[2]:
        return now.new_full((weights.heads,), torch.nan)
    own = torch.linalg.matrix_norm(weights.gram(role))
    if role in weights.unmoved:  # against itself: rounding is no drift, but NaN stays
        return weights.each(own * 0.0)
    start = as_float(without_waiting(start, now.device), "start", "h D d").to(now.dtype)
    before = start @ start.mT
    start_norm = torch.linalg.matrix_norm(before)
    # ½ ‖A/‖A‖ − A₀/‖A₀‖‖² from the difference of the rows: 1 − RV itself would round a small drift away
    first = torch.mul(start, start_norm.rsqrt()[:, None, None], out=scratch("start", tuple(now.shape), now))
    step = torch.mul(now, own.rsqrt()[:, None, None], out=scratch("step", tuple(now.shape), now)).sub_(first)
    before, mixed, steps = before / start_norm[:, None, None], first @ step.mT, step @ step.mT
    distance = 2 * before * steps + 2 * mixed * mixed.mT + steps.square() + 4 * mixed * steps
    distance = distance.sum((-2, -1))
    return weights.each((distance / 2).clamp(0, 1))
