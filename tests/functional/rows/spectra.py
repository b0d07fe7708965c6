"""Rows of spectra, subspaces, and heads compared by the covariance of their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from functional import definitions
from functional.row import Arguments, Array, Draw, Row
from lightning_geo import functional as F
from lightning_geo.metrics.registry import metric_function

TABLE: dict[str, Row] = {}

# -- spectra [..., d] of a covariance


def spectrum(draw: Draw) -> Arguments:
    d = draw.size(1, 20)
    decay = np.exp(-draw.rng.uniform(0, 0.2 if draw.clean else 5) * np.arange(d))
    return (draw.tensor(draw.rng.gamma(1.0, size=(*draw.lead, d)) * decay + 1e-6),)


def of_other_scale(draw: Draw, x: Tensor) -> Arguments:
    return (x[..., draw.order(x.shape[-1])] * 10 ** draw.rng.uniform(-18, 18),)


def with_rounding(draw: Draw, x: Tensor) -> Arguments:
    """Rounding makes eigenvalues that are 0 negative."""
    return (torch.cat([x, torch.zeros_like(x[..., :1]), -1e-7 * x[..., :1]], -1),)


NO_SPECTRUM = tuple((torch.tensor([s]),) for s in ([0.0, 0.0], [torch.nan, 1.0], [-1e-9, 0.0]))


SOME_ZERO = ((torch.tensor([[3.0, 2, 1, 0], [1, 0, 0, 0]]),),)


def of_spectrum(function: Callable[..., Tensor], definition: Callable[..., Any], **options: Any) -> Row:
    return Row(
        function, spectrum, definition, undefined=NO_SPECTRUM, gradient_of_nan=False,
        unchanged={"order and scale": of_other_scale, "rounding below zero": with_rounding}, **options,
    )  # fmt: skip


TABLE |= {
    "effective_rank": of_spectrum(F.effective_rank, definitions.effective_rank, zeros=SOME_ZERO),
    "effective_rank, of variances": of_spectrum(
        metric_function("effective_rank"), lambda x: definitions.effective_rank(np.sqrt(x))
    ),
    "participation_ratio": of_spectrum(
        F.participation_ratio, definitions.participation_ratio, zeros=SOME_ZERO
    ),
    "stable_rank": of_spectrum(F.stable_rank, definitions.stable_rank, zeros=SOME_ZERO),
    "top_share": of_spectrum(F.top_share, lambda x: 1 / definitions.stable_rank(x), zeros=SOME_ZERO),
}

# -- subspaces


def covariance(draw: Draw) -> Arguments:
    """With eigenvalues that lie apart: rounding turns a subspace by about eps over the gap to the next."""
    d = draw.size(2, 12)
    values = (
        0.8 ** np.arange(d) * draw.rng.uniform(0.97, 1.03, (*draw.lead, d)) * 10 ** draw.rng.uniform(-2, 2)
    )
    vectors = draw.basis(d, d)
    c = draw.tensor((vectors * values[..., None, :]) @ np.swapaxes(vectors, -1, -2))
    return (c + c.mT) / 2, draw.size(1, d)


def projected(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues as shares of the largest, and the projector: the basis may turn within its space."""
    eigenvalues, u = F.principal_subspace(covariance, rank)
    return eigenvalues / eigenvalues[..., :1], (u[..., :, None, :] * u[..., None, :, :]).sum(-1)


def bases(draw: Draw) -> Arguments:
    d = draw.size(2, 12)
    r = draw.size(1, d)
    return draw.tensor(draw.basis(d, r)), draw.tensor(draw.basis(d, r))


def columns(draw: Draw) -> Arguments:
    """Linearly independent, of two numbers, with a direction in common."""
    d = draw.size(2, 12)
    u, v = (
        draw.basis(d, r) @ (np.eye(r) + draw.rng.uniform(0, 2, (r, r)).round() / r)
        for r in draw.rng.integers(1, d + 1, 2)
    )
    if not draw.clean:
        u[..., 0] = v[..., 0]
    return draw.tensor(u), draw.tensor(v)


def turned_bases(draw: Draw, u: Tensor, v: Tensor) -> Arguments:
    """Another basis of the first space, and both spaces turned alike."""
    outer = draw.rotation(u.shape[-2])
    return outer @ u @ draw.rotation(u.shape[-1]), outer @ v


def same_space(draw: Draw, u: Tensor, v: Tensor) -> Arguments:
    return v, u


E4, WIDE = torch.eye(4), (torch.float64, torch.float32)
SPACES = {"basis and place": turned_bases, "which is first": same_space}
TABLE |= {
    "principal_subspace": Row(
        projected, covariance,
        lambda c, rank: (np.linalg.svd(c)[1] / np.linalg.svd(c)[1][0], definitions.projector(c, rank)),
        tolerance=(1e-9, 1.2e-4),
        differentiable=lambda c, rank: F.principal_subspace((c + c.mT) / 2, rank)[0],
    ),
    "principal_angles": Row(
        # SciPy takes the arc cosine of a small angle beside a large one: its own error is some 1e-8
        F.principal_angles, columns, definitions.principal_angles, tolerance=(2e-7, 1e-6),
        unchanged=SPACES, infinite=False, dtypes=WIDE,
    ),
    "projection_similarity": Row(
        F.projection_similarity, bases, definitions.projection_similarity, tolerance=(1e-9, 1e-6),
        unchanged=SPACES, infinite=False, dtypes=WIDE,
    ),
    "subspace_distance": Row(
        F.subspace_distance, bases, definitions.subspace_distance, tolerance=(1e-7, 1e-6),
        unchanged=SPACES, infinite=False, dtypes=WIDE, zeros=((E4[None, :, :2], E4[None, :, :2].clone()),),
    ),
}  # fmt: skip

# -- heads: covariances [..., H, D, H, D] of outputs


def representations(draw: Draw) -> Arguments:
    n = draw.size(3, 12)
    return draw.normal(n, draw.size(2, 6), mean=3), draw.normal(n, draw.size(2, 6), mean=3)


def heads(draw: Draw) -> Arguments:
    """Covariance of heads of different size, two of which agree in part; and their outputs."""
    count, width = draw.size(2 if draw.clean else 1, 5), draw.size(1, 4)
    n = draw.size(2, 30)
    x = draw.rng.normal(1, 1, (*draw.lead, n, count, width)) @ draw.rng.normal(size=(width, width))
    x *= 10 ** draw.rng.uniform(-2, 2, (count, 1)) if not draw.clean else 1
    x[..., -1, :] += 0.5 * x[..., 0, :]
    flat = (x - x.mean(-3, keepdims=True)).reshape(*draw.lead, n, -1)
    c = draw.tensor(np.swapaxes(flat, -1, -2) @ flat / n)
    return c.reshape(*draw.lead, count, width, count, width), x


DEAD, SINGLE = (torch.zeros(2, 2, 3, 2, 3), None), (torch.ones(2, 1, 3, 1, 3), None)


def of_heads(function: Callable[..., Tensor], definition: Callable[..., Any], **options: Any) -> Row:
    return Row(
        lambda c, x: function(c), heads, lambda c, x: definition(x), tolerance=(1e-9, 2e-6), infinite=False,
        dtypes=WIDE, gradient_of_nan=False,
        unchanged={"rotation and scale": turned_heads, "order": heads_in_order}, **options,
    )  # fmt: skip


def turned_heads(draw: Draw, c: Tensor, x: Array) -> Arguments:
    """Each head's outputs turned within its own space, and all of another scale."""
    count, width = c.shape[-2:]
    turns = torch.block_diag(*(draw.rotation(width) for _ in range(count)))
    flat = c.reshape(*c.shape[:-4], count * width, -1)
    return (turns.mT @ flat @ turns * 10 ** draw.rng.uniform(-6, 6)).reshape(c.shape), x


def similar(draw: Draw, x: Tensor, y: Tensor) -> Arguments:
    return x @ draw.rotation(x.shape[-1]) * 10 ** draw.rng.uniform(-3, 3) + 7, y


def heads_in_order(draw: Draw, c: Tensor, x: Array) -> Any:
    order = draw.order(c.shape[-2])

    def expect(value: Tensor) -> Tensor:
        heads = value.shape[len(draw.lead) :]
        return value[..., order, :][..., order] if len(heads) == 2 else value[..., order] if heads else value

    return (c[..., order, :, :, :][..., order, :], x), expect


TABLE |= {
    "linear_cka": Row(
        F.linear_cka, representations, definitions.linear_cka, gradient_of_nan=False,
        undefined=(
            (torch.full((2, 3, 2), 0.1), torch.eye(3).expand(2, 3, 3)),
            (torch.ones(2, 1, 2), torch.ones(2, 1, 2)),
        ),
        unchanged={"rotation, scale, offset": similar, "which is first": lambda draw, x, y: (y, x)},
    ),
    "head_similarity": of_heads(F.head_similarity, definitions.head_similarity, undefined=(DEAD,)),
    "redundancy": of_heads(F.redundancy, definitions.redundancy, undefined=(DEAD, SINGLE)),
    "complementarity": of_heads(F.complementarity, definitions.complementarity, undefined=(DEAD,)),
    "head_importance": Row(
        F.head_importance, lambda draw: (draw.normal(),), abs,
        unchanged={"sign": lambda draw, x: (-x,)}, undefined=((torch.tensor([torch.nan]),),),
        zeros=((torch.zeros(2),),),
    ),
}  # fmt: skip
