"""Rows of queries, keys and the attention between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from functional import definitions
from functional.row import Arguments, Array, Draw, Row
from functional.rows.tokens import ONE
from kernels.naive import naive
from lightning_geo import functional as F
from lightning_geo.metrics.registry import metric_function, reads_of

TABLE: dict[str, Row] = {}

# -- queries and keys [..., H, n, D]


def heads_of(draw: Draw, *, same: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys that groups of heads share, and which of both are real; ``same``: one mask for both."""
    shared, group, d = draw.size(1, 2), draw.size(1, 2), draw.size(2, 4)
    nq, nk = (draw.size(3, 5) if draw.clean or same else draw.size(1, 5) for _ in range(2))
    nk = nq if same else nk
    query, key = draw.normal(shared * group, nq, d, mean=1), draw.normal(shared, nk, d, mean=1)
    query_mask = draw.mask(nq)
    key_mask = query_mask if same else draw.mask(nk)
    query, key = (
        draw.poisoned(query, query_mask[..., None, :, None]),
        draw.poisoned(key, key_mask[..., None, :, None]),
    )
    return query, key, query_mask, key_mask


def queries_and_keys(draw: Draw) -> Arguments:
    return heads_of(draw)


def qk_cosine(query: Array, key: Array, query_mask: Array, key_mask: Array) -> Array:
    return definitions.qk_cosine(query[:, query_mask], key[:, key_mask])


def of_moments(name: str) -> Callable[..., Tensor]:
    """A metric that reads moments of queries and keys."""

    def function(query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor) -> Tensor:
        quantities = {}
        for role, x, mask in (("query", query, query_mask), ("key", key, key_mask)):
            moments = F.head_moments(x, mask)
            lengths = F.masked_mean(moments.norm, mask[:, None])
            quantities[f"{role}.length"] = lengths.repeat_interleave(query.shape[1] // x.shape[1], 1)
            quantities[f"{role}.directions"] = moments.directions
            quantities[f"{role}.tokens"] = mask.sum(-1)[:, None].expand(lengths.shape)
        return metric_function(name)(*(quantities[quantity] for quantity in reads_of(name)))

    return function


def lengths_of(which: int) -> Callable[..., Array]:
    def reference(query: Array, key: Array, *masks: Array) -> Array:
        heads = query if which == 0 else np.repeat(key, len(query) // len(key), axis=0)
        return np.array([definitions.token_norm(x[masks[which]]) for x in heads])

    return reference


def other_heads(draw: Draw, query: Tensor, key: Tensor, *masks: Tensor) -> Arguments:
    turn = draw.rotation(query.shape[-1])
    return 3 * query @ turn, 5 * key @ turn, *masks


def moments_row(name: str, reference: Callable[..., Any], **options: Any) -> Row:
    return Row(of_moments(name), queries_and_keys, reference, axes=1, gradient=False, **options)


NO_QUERY = (torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3, 4), torch.zeros(2, 3).bool(), torch.ones(2, 3).bool())
NO_KEY = (*NO_QUERY[:2], NO_QUERY[3], NO_QUERY[2])
TABLE |= {
    "qk_cosine": Row(
        F.qk_cosine, queries_and_keys, qk_cosine, masks=(2, 3), undefined=(NO_QUERY, NO_KEY),
        gradient_of_nan=False,
        unchanged={"rotation and lengths": other_heads},
    ),
    "qk_cosine, of moments": moments_row("qk_cosine", qk_cosine, masks=(2, 3), undefined=(NO_QUERY, NO_KEY)),
    "query_norm": moments_row("query_norm", lengths_of(0), broken=(0,), masks=(2,), undefined=(NO_QUERY,)),
    "key_norm": moments_row("key_norm", lengths_of(1), broken=(1,), masks=(3,), undefined=(NO_KEY,)),
}  # fmt: skip

# -- attention: a plane [B, H, Nq] of the statistics of queries and keys

SPECIAL = torch.tensor([True, False, True, False, False, True, False])
SINKS = torch.tensor([0.5, -1.0, 0.0, 2.0])


def attention_options(query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor) -> dict[str, Any]:
    return {
        "query": query, "key": key, "mask": key_mask[:, None, None], "query_mask": query_mask,
        "special": SPECIAL[: key.shape[2]].expand(key.shape[0], -1), "sinks": SINKS[: query.shape[1]],
    }  # fmt: skip


def attended(draw: Draw) -> Arguments:
    return heads_of(draw, same=True)


def of_rows(name: str) -> Row:
    """A metric of attention rows."""

    def function(*arguments: Tensor) -> Tensor:
        statistics = F.attention_statistics(**attention_options(*arguments), statistics=reads_of(name))
        return metric_function(name)(*(getattr(statistics, field) for field in reads_of(name)))

    def reference(*arguments: Array) -> Array:
        options = attention_options(*(torch.from_numpy(a)[None] for a in arguments))
        found = {field: plane[0] for field, plane in naive(options).items()}
        if name != "normalized_entropy":
            return np.where(found["live"], found[name], np.nan)
        share = np.vectorize(definitions.normalized_entropy)
        return np.where(found["live"], share(found["entropy"], found["visible_keys"]), np.nan)

    # float32 planes of float64 inputs
    return Row(
        function, attended, reference, axes=1, masks=(2, 3), result=torch.float32, gradient=False,
        examples=10, tolerance=(2e-5, 2e-5), undefined=(NO_QUERY[:2] + NO_QUERY[2:3] * 2,),
    )  # fmt: skip


def received_entropy(draw: Draw) -> Arguments:
    heads, n = draw.size(1, 3), draw.size(4 if draw.clean else 1, 12)
    received, mask = 50 * draw.gamma(heads, n, concentration=5 if draw.clean else 0.3), draw.mask(n)
    return draw.poisoned(received, mask[..., None, :]), mask


def keys_in_order(draw: Draw, received: Tensor, mask: Tensor) -> Arguments:
    order = draw.order(mask.shape[-1])
    return 10 ** draw.rng.uniform(-6, 6) * received[..., order], mask[..., order]


def entropies(draw: Draw) -> Arguments:
    """Entropies of attention, and how many keys were visible."""
    keys = draw.rng.integers(2 if draw.clean else 0, 30, draw.lead)
    share = draw.rng.uniform(0.1 if draw.clean else 0, 0.9 if draw.clean else 1, draw.lead)
    return draw.tensor(np.log(np.maximum(keys, 1)) * share), torch.tensor(keys)


def of_received(query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor) -> Tensor:
    """The metric ``key_entropy``, of what the keys receive."""
    options = attention_options(query, key, query_mask, key_mask)
    statistics = F.attention_statistics(**options, statistics=["received"])
    return metric_function("key_entropy")(statistics.received, key_mask)


def received_of(*arguments: Array) -> Array:
    options = attention_options(*(torch.from_numpy(a)[None] for a in arguments))
    return definitions.key_entropy(naive(options)["received"][0][:, arguments[3]])


ROWS = (
    "entropy", "concentration", "max_probability", "max_logit", "learned_sink_mass", "self_mass",
    "previous_mass", "next_mass", "first_mass", "backward_mass", "forward_mass", "attention_distance",
    "special_mass",
)  # fmt: skip
TABLE |= {name: of_rows(name) for name in ROWS}
TABLE |= {
    "normalized_entropy, of rows": of_rows("normalized_entropy"),
    "normalized_entropy": Row(
        F.normalized_entropy, entropies, definitions.normalized_entropy, infinite=False,
        undefined=((torch.ones(2), torch.tensor([1, 0])), (torch.tensor([torch.nan]), torch.tensor([5]))),
    ),
    "key_entropy": Row(
        F.key_entropy, received_entropy, lambda x, mask: definitions.key_entropy(x[:, mask]), masks=(1,),
        unchanged={"order and scale": keys_in_order},
        undefined=(
            (torch.zeros(2, 3, 4), torch.ones(2, 4).bool()), (torch.ones(2, 3, 4), torch.zeros(2, 4).bool()),
            (torch.ones(2, 3, 1), torch.ones(2, 1).bool()), (torch.ones(2, 3, 4), ONE[1][:, [0, 1, 2, 2]]),
        ),
    ),
    "key_entropy, of attention": Row(
        of_received, attended, received_of, axes=1, masks=(2, 3), result=torch.float32, gradient=False,
        examples=10, tolerance=(2e-5, 2e-5),
    ),
}  # fmt: skip
