"""Rows of scores of queries and keys of the same tokens, and of the gates that heads are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from families import matrices
from functional.row import Arguments, Array, Draw, Row
from functional.rows.attention import NO_QUERY, attended
from functional.rows.tokens import NOBODY, in_order, real
from lightning_geo import functional as F
from lightning_geo.measurement.call_statistics import observed_scores
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.gates import GATES, MIXED
from lightning_geo.metrics.registry import metric_function
from lightning_geo.observe import AttentionCall

TABLE: dict[str, Row] = {}

# -- scores of queries and keys of the same tokens


def of_scores(name: str, definition: Callable[[Array, Array], Any], **options: Any) -> Row:
    """A metric of single scores, all its parts; the definition is of one head's queries and keys."""
    parts = [(part,) for part in CATALOG[name].parts] or [()]

    def function(query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor) -> tuple[Tensor, ...]:
        mask = key_mask[:, None, None]
        call = AttentionCall(query, key, None, None, (mask,), query_mask=query_mask, key_mask=key_mask)
        scores = observed_scores(call, len(query))
        return tuple(metric_function(name)(scores, *part) for part in parts)

    def reference(query: Array, key: Array, query_mask: Array, key_mask: Array) -> tuple[Array, ...]:
        if not query_mask.any():
            return tuple(np.full(len(query), np.nan) for _ in parts)
        keys = np.repeat(key, len(query) // len(key), axis=0)[:, key_mask]
        found = [definition(q, k) for q, k in zip(query[:, query_mask], keys, strict=True)]
        return tuple(np.reshape(found, (len(query), len(parts))).T)

    options = {"tolerance": (2e-5, 2e-5), "result": torch.float32, "gradient": None, **options}
    undefined = (NO_QUERY[:2] + NO_QUERY[2:3] * 2,)
    return Row(
        function, attended, reference, axes=1, masks=(2, 3), undefined=undefined, examples=20, **options
    )


def gate(query: Array, key: Array) -> list[float]:
    scores = query @ key.T / np.sqrt(query.shape[1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    everyone = np.ones(len(query), dtype=bool)
    margins = matrices.gate_margins(
        p / p.sum(-1, keepdims=True), np.ones_like(p, dtype=bool), everyone, everyone
    )
    return [margins[gate] for gate in GATES]


def von_neumann_entropy(symmetric: bool, paper: bool) -> Callable[[Array, Array], float]:
    def of(query: Array, key: Array) -> float:
        matrix = query @ key.T
        return matrices.von_neumann_entropy((matrix + matrix.T) / 2 if symmetric else matrix, paper=paper)

    return of


def same_tokens(draw: Draw) -> Arguments:
    n, dim = draw.size(4, 6), draw.size(2, 4)
    mask = draw.mask(n)
    return *(draw.poisoned(draw.normal(n, dim, mean=1), mask[..., None]) for _ in range(2)), mask


def labels(margins: Array) -> float:
    if np.isnan(margins).any():
        return -1.0
    return float(margins.argmax()) if margins.max() >= 0 else float(len(GATES))


def some_margins(draw: Draw) -> Arguments:
    margins = draw.rng.normal(-0.5, 0.5, (*draw.lead, 3, len(GATES)))
    if not draw.clean:
        margins[draw.rng.random(margins.shape) < 0.02] = np.nan
    return (draw.tensor(margins),)


def gate_counts(margins: Tensor) -> tuple[Tensor, ...]:
    """The metric ``gate_count``, of margins [head, gate]."""
    return tuple(metric_function("gate_count")(margins.T.float(), part) for part in (*GATES, MIXED))


def counts(margins: Array) -> tuple[float, ...]:
    found = [labels(one) for one in margins]
    return tuple(float(found.count(place)) for place in range(len(GATES) + 1))


VARIANTS = [(symmetric, paper) for symmetric in (False, True) for paper in (False, True)]
TABLE |= {
    "score_entropy": of_scores(
        "score_entropy", lambda q, k: matrices.score_entropy(q @ k.T), result=torch.float64,
        tolerance=(5e-4, 5e-4)
    ),
    "score_norm_share": of_scores(
        "score_norm_share",
        lambda q, k: matrices.score_norm_shares(q, k, np.ones((len(q), len(k)), dtype=bool)),
    ),
    # rows without a value are left out, sequences that are broken by the caller
    "gate": of_scores("gate", gate, broken=()),
    "gate_labels": Row(
        lambda margins: F.gate_labels(margins.movedim(-1, 0)).float(), some_margins,
        lambda margins: np.array([labels(one) for one in margins]), result=torch.float32,
        gradient=False, broken=(),
    ),
    "gate_count": Row(gate_counts, some_margins, counts, axes=0, result=torch.float32, gradient=False),
}  # fmt: skip
for symmetric, paper in VARIANTS:
    name = "von_neumann_entropy" + ".symmetric" * symmetric + ".paper" * paper
    definition = von_neumann_entropy(symmetric, paper)
    TABLE[f"{name}, of calls"] = of_scores(name, definition, result=None)
    TABLE[name] = Row(
        functools.partial(F.von_neumann_entropy, symmetric=symmetric, paper=paper), same_tokens,
        real(definition),
        masks=(2,), tolerance=(1e-6, 1e-4), undefined=(NOBODY[:1] * 2 + NOBODY[1:],), gradient_of_nan=False,
        unchanged={"order": in_order},
    )  # fmt: skip
