"""Every metric of a layer from dense float64 arrays, as DESIGN-level definitions: slow, plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from families.reference import Layer

Array = NDArray[Any]
RANK = 4  # half the heads' 8 dimensions: the most that `rank=8` allows


def _over_rows(values: Array, valid: Array) -> Array:
    """[B, H, Nq] -> [H]: over valid rows that have a value, then over sequences that have one."""
    means = []
    for sequence, rows in zip(values, valid, strict=True):
        kept = sequence[:, rows]
        if not np.isnan(kept).all():
            means.append(np.nanmean(kept, axis=1))
    return np.mean(means, axis=0)


def probabilities(layer: Layer) -> Array:
    """Over real, visible keys; rows without any are NaN."""
    p = np.where(layer.visible[:, None], layer.probabilities, 0.0)
    with np.errstate(invalid="ignore"):
        return p / p.sum(-1, keepdims=True)


def _plogp(p: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p), np.where(p == 0, 0.0, np.nan))


def entropy(layer: Layer) -> dict[str, Array]:
    """The entropy family."""
    p = probabilities(layer)
    rows = -_plogp(p).sum(-1)
    visible = layer.visible.sum(-1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        normalized = np.where(visible >= 2, rows / np.log(visible), np.nan)
    result = {
        "entropy": _over_rows(rows, layer.queries),
        "normalized_entropy": _over_rows(normalized, layer.queries),
        "concentration": _over_rows((p**2).sum(-1), layer.queries),
        "max_probability": _over_rows(p.max(-1), layer.queries),
        "key_entropy": _key_entropy(p, layer),
    }
    missing = 1 - np.where(layer.visible[:, None], layer.probabilities, 0.0).sum(-1)
    if (missing * layer.queries[:, None]).max() > 1e-3:  # only sinks take anything away
        result["learned_sink_mass"] = _over_rows(missing, layer.queries)
    if layer.scores is not None:
        seen = layer.visible & layer.queries[:, :, None]
        result["max_logit"] = np.where(seen[:, None], layer.scores, -np.inf).max((0, 2, 3))
    return result


def _key_entropy(p: Array, layer: Layer) -> Array:
    values = []
    for sequence, rows, keys in zip(p, layer.queries, layer.keys, strict=True):
        received = sequence[:, rows].sum(1)[:, keys]
        share = received / received.sum(-1, keepdims=True)
        values.append(-_plogp(share).sum(-1) / np.log(keys.sum()))
    return np.mean(values, axis=0)


def pattern(layer: Layer) -> dict[str, Array]:
    """The pattern family; empty for cross-attention."""
    if layer.cross:
        return {}
    p = probabilities(layer)
    length = p.shape[-1]
    i, j = np.arange(length)[:, None], np.arange(length)[None, :]
    first = np.zeros_like(layer.keys)
    first[np.arange(len(first)), layer.keys.argmax(-1)] = True
    weights: dict[str, Array] = {
        "self_mass": i == j,
        "previous_mass": j == i - 1,
        "next_mass": j == i + 1,
        "first_mass": first[:, None, None, :],
        "backward_mass": j < i,
        "forward_mass": j > i,
        "attention_distance": np.abs(i - j),
    }
    return {name: _over_rows((p * weight).sum(-1), layer.queries) for name, weight in weights.items()}


def _directions(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _over_sequences(value: Callable[[Array], Any], x: Array, valid: Array) -> Array:
    """Mean over sequences of ``value(tokens [..., n, d])``."""
    return np.mean([value(sequence[..., rows, :]) for sequence, rows in zip(x, valid, strict=True)], axis=0)


def _cones(x: Array, valid: Array, suffix: str) -> dict[str, Array]:
    def index(tokens: Array) -> Array:
        return np.linalg.norm(_directions(tokens).sum(-2), axis=-1)

    def share(tokens: Array) -> Array:
        return index(tokens) / tokens.shape[-2]

    def cosine(tokens: Array) -> Array:
        unit = _directions(tokens)
        cosines = unit @ unit.swapaxes(-1, -2)
        apart = ~np.eye(tokens.shape[-2], dtype=bool)
        return cosines[..., apart].mean(-1)

    return {
        f"cone.{suffix}": _over_sequences(share, x, valid),
        f"cone_index.{suffix}": _over_sequences(index, x, valid),
        f"mean_cosine.{suffix}": _over_sequences(cosine, x, valid),
    }


def head_outputs(layer: Layer) -> Array | None:
    """[B, H, Nq, 8]: what each head adds up, with what a sink takes away missing."""
    if layer.value is None:
        return None
    p = np.where(layer.visible[:, None], layer.probabilities, 0.0)
    return p @ layer.value


def cone(layer: Layer) -> dict[str, Array]:
    """The cone family; a block is told once, with its self-attention."""
    heads = head_outputs(layer)
    return {
        **_cones(layer.attended, layer.queries, "attention"),
        **({} if heads is None else _cones(heads, layer.queries, "head")),
        **({} if layer.cross else _cones(layer.block_input, layer.tokens, "input")),
        **({} if layer.cross else _cones(layer.block_output, layer.tokens, "output")),
    }


def stream(layer: Layer) -> dict[str, Array]:
    """The stream family; a block is told once, with its self-attention."""
    if layer.cross:
        return {}
    x, before = layer.block_output, layer.block_input
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # padding may be zero
        change = np.linalg.norm(x - before, axis=-1, keepdims=True)
        change = change / np.linalg.norm(before, axis=-1, keepdims=True)
    per_token = {
        "hidden_norm": length,
        "skewness": stats.skew(x, axis=-1)[..., None],
        "kurtosis": stats.kurtosis(x, axis=-1)[..., None],
        "update_ratio": change,
    }
    return {name: _over_sequences(np.mean, values, layer.tokens) for name, values in per_token.items()}


def _centred(x: Array, valid: Array) -> Array:
    """[B, H, N, D] -> [H, tokens, D], valid tokens of all sequences, centred together."""
    tokens = np.concatenate([s[:, rows] for s, rows in zip(x, valid, strict=True)], axis=1)
    return tokens - tokens.mean(1, keepdims=True)


def _roles(layer: Layer) -> dict[str, tuple[Array | None, Array]]:
    """Vectors of each role [B, H, N, 8], and which of them count."""
    return {
        "query": (layer.query, layer.queries),
        "key": (layer.key, layer.keys),
        "value": (layer.value, layer.keys),
        "output": (head_outputs(layer), layer.queries),
    }


def smallest_singular_value(layer: Layer, role: str) -> Array:
    """[H]: as a share of the largest; how well conditioned the effective rank of a role is."""
    x, valid = _roles(layer)[role]
    assert x is not None
    sigma = np.linalg.svd(_centred(x, valid), compute_uv=False)
    return sigma[:, -1] / sigma[:, 0]


def subspace(layer: Layer) -> dict[str, Array]:
    """The subspace family, but what compares samples; roles that the reference cannot tell are left out."""
    result: dict[str, Array] = {}
    bases = {}
    for role, (x, valid) in _roles(layer).items():
        if x is None:
            continue
        _, sigma, directions = np.linalg.svd(_centred(x, valid), full_matrices=False)
        share, variance = sigma / sigma.sum(-1, keepdims=True), sigma**2
        result[f"effective_rank.{role}"] = np.exp(-_plogp(share).sum(-1))
        result[f"participation_ratio.{role}"] = variance.sum(-1) ** 2 / (variance**2).sum(-1)
        result[f"stable_rank.{role}"] = variance.sum(-1) / variance[..., 0]
        result[f"top_share.{role}"] = variance[..., 0] / variance.sum(-1)
        bases[role] = directions[:, :RANK]
        if role in ("query", "key"):
            result[f"{role}_norm"] = _over_sequences(
                lambda tokens: np.linalg.norm(tokens, axis=-1).mean(-1), x, valid
            )
    if layer.query is not None and layer.key is not None:
        overlap = bases["query"] @ bases["key"].swapaxes(-1, -2)
        result["qk_alignment"] = (overlap**2).sum((-1, -2)) / RANK
        cosines = _directions(layer.query) @ _directions(layer.key).swapaxes(-1, -2)
        pairs = layer.queries[:, :, None] & layer.keys[:, None, :]
        result["qk_cosine"] = np.mean([c[:, m].mean(-1) for c, m in zip(cosines, pairs, strict=True)], axis=0)
    return result


def head(layer: Layer) -> dict[str, Array]:
    """The head family."""
    outputs = head_outputs(layer)
    if outputs is None:
        return {}
    x = _centred(outputs, layer.queries)
    cross = np.linalg.norm(np.einsum("htd,gte->hgde", x, x), axis=(-1, -2)) ** 2
    own = np.sqrt(np.diagonal(cross))
    similarity = cross / np.outer(own, own)
    np.fill_diagonal(similarity, -np.inf)
    joined = np.linalg.svd(np.concatenate(list(x), axis=-1), compute_uv=False) ** 2
    alone = [np.linalg.svd(one, compute_uv=False) ** 2 for one in x]

    def participation(variance: Array) -> Array:
        return variance.sum() ** 2 / (variance**2).sum()

    return {
        "redundancy": similarity.max(-1),
        "complementarity": participation(joined) / sum(participation(one) for one in alone),
    }


#: Functions by family of metrics.
METRICS: dict[str, Callable[[Layer], dict[str, Array]]] = {
    "entropy": entropy,
    "pattern": pattern,
    "cone": cone,
    "stream": stream,
    "subspace": subspace,
    "head": head,
}
