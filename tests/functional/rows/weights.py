"""Rows of a layer's weights, and of what heads read of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from families import dense, matrices
from functional.row import Arguments, Array, Draw, Row
from lightning_geo import functional as F
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.registry import metric_function
from lightning_geo.metrics.spec import ROLES

TABLE: dict[str, Row] = {}

# -- weights [H, D, d] of one layer; the functions are of one layer at a time


def weights(draw: Draw) -> Arguments:
    """Query, key, value, output, and what they were at the start; heads share keys and values in groups."""
    shared, group, dim, width = draw.size(2, 3), draw.size(1, 2), draw.size(2, 4), draw.size(12, 20)
    shape = {"query": shared * group, "key": shared, "value": shared, "output": shared * group}
    now = [draw.normal(heads, dim, width) for heads in shape.values()]
    return *now, *(w + 0.3 * draw.normal(*w.shape) for w in now)


def of_weights(name: str, definition: Callable[[dense.Heads, dense.Heads], Any]) -> Row:
    """A metric of weights, all its parts."""

    def function(*arrays: Tensor) -> tuple[Tensor, ...]:
        held = F.HeadWeights(*arrays[:4], start=dict(zip(ROLES, arrays[4:], strict=True)))
        parts = [(part,) for part in CATALOG[name].parts] or [()]
        return tuple(metric_function(name)(held, *part) for part in parts)

    def reference(*arrays: Array) -> Any:
        return definition(*(dict(zip(ROLES, part, strict=True)) for part in (arrays[:4], arrays[4:])))

    return Row(
        function, weights, reference, axes=0, tolerance=(1e-6, 2e-4), examples=20, autocast=False,
        gradient=None, result=torch.float64 if name.endswith("symmetry") else None,
    )  # fmt: skip


def weight(name: str) -> Callable[[dense.Heads, dense.Heads], Any]:
    names = [f"{name}.{part}" for part in CATALOG[name].parts] or [name]
    return lambda now, start: tuple(dense.expected(now)[name] for name in names)


def weight_drift(now: dense.Heads, start: dense.Heads) -> tuple[Array, ...]:
    return tuple(dense.drift(now[role], start[role], len(now["query"])) for role in ROLES)


def angle(role: str) -> Callable[[dense.Heads, dense.Heads], Array]:
    def of(now: dense.Heads, start: dense.Heads) -> Array:
        one, other = (np.repeat(now[r], len(now["query"]) // len(now[r]), axis=0) for r in (role, "value"))
        return np.array([matrices.mean_angle(a, b) for a, b in zip(one, other, strict=True)])

    return of


WEIGHTS = (
    "symmetry", "directionality", "layer_symmetry", "layer_directionality", "qk_effective_rank",
    "qk_stable_rank", "qk_norm", "ov_effective_rank", "ov_stable_rank", "ov_norm", "read_overlap",
    "write_overlap",
)  # fmt: skip
TABLE |= {name: of_weights(name, weight(name)) for name in WEIGHTS}
TABLE |= {f"{role}_value_angle": of_weights(f"{role}_value_angle", angle(role)) for role in ("query", "key")}
TABLE["weight_drift"] = of_weights("weight_drift", weight_drift)

# -- what heads read of tokens [B, n, d]


def reads(draw: Draw) -> Arguments:
    n, dim, width = draw.size(3, 6), draw.size(2, 3), draw.size(6, 9)
    mask = draw.mask(n)
    x = draw.poisoned(draw.normal(n, width), mask[..., None])
    return x, draw.tensor(draw.rng.normal(size=(draw.size(1, 3), dim, width))), mask


def projection_strength(x: Array, weight: Array, mask: Array) -> Array:
    if not mask.any():
        return np.full(len(weight), np.nan)
    return np.array([matrices.projection_strength(x[mask], w) for w in weight])


TABLE["projection_strength"] = Row(
    lambda x, weight, mask: F.projection_strength(F.HeadReads(x, weight, mask=mask)),
    reads, projection_strength, axes=1, shared=(1,), masks=(2,), result=torch.float32, broken=(0,),
    tolerance=(2e-5, 2e-5), gradient=None, examples=20, autocast=False,
    undefined=((torch.ones(2, 3, 4), torch.eye(4)[None, :2], torch.zeros(2, 3).bool()),),
    unchanged={"scale": lambda draw, x, weight, mask: (5 * x, 7 * weight, mask)},
)  # fmt: skip
