"""Every metric of a layer from dense float64 arrays, as DESIGN-level definitions: slow, plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from families.reference import Layer
from functional import definitions

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
    pairs = zip(p, layer.queries, layer.keys, strict=True)
    received = [sequence[:, rows].sum(1)[:, keys] for sequence, rows, keys in pairs]
    return np.mean([definitions.key_entropy(one) for one in received], axis=0)


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


def _over_sequences(definition: Callable[..., float], valid: Array, *vectors: Array) -> Array:
    """Mean over sequences of what is defined for tokens [n, d]; vectors are [B, n, d] or [B, H, n, d]."""
    found = []
    for rows, *sequences in zip(valid, *vectors, strict=True):
        tokens = [sequence[..., rows, :] for sequence in sequences]
        heads = (
            [definition(*parts) for parts in zip(*tokens, strict=True)]
            if tokens[0].ndim == 3
            else definition(*tokens)
        )
        found.append(heads)
    return np.mean(found, axis=0)


def _cones(x: Array, valid: Array, suffix: str) -> dict[str, Array]:
    functions = {name: getattr(definitions, name) for name in ("cone", "cone_index", "mean_cosine")}
    return {f"{name}.{suffix}": _over_sequences(function, valid, x) for name, function in functions.items()}


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
    return {
        "hidden_norm": _over_sequences(definitions.token_norm, layer.tokens, x),
        "skewness": _over_sequences(definitions.skewness, layer.tokens, x),
        "kurtosis": _over_sequences(definitions.kurtosis, layer.tokens, x),
        "update_ratio": _over_sequences(definitions.update_ratio, layer.tokens, x, before),
    }


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
        for name, spectra in (
            ("effective_rank", sigma),
            ("participation_ratio", sigma**2),
            ("stable_rank", sigma**2),
        ):
            values = [getattr(definitions, name)(spectrum) for spectrum in spectra]
            result[f"{name}.{role}"] = np.array(values)
        result[f"top_share.{role}"] = 1 / result[f"stable_rank.{role}"]
        bases[role] = directions[:, :RANK]
        if role in ("query", "key"):
            result[f"{role}_norm"] = _over_sequences(definitions.token_norm, valid, x)
    if layer.query is not None and layer.key is not None:
        overlap = bases["query"] @ bases["key"].swapaxes(-1, -2)
        result["qk_alignment"] = (overlap**2).sum((-1, -2)) / RANK
        both = zip(layer.query, layer.key, layer.queries, layer.keys, strict=True)
        cosines = [definitions.qk_cosine(q[:, rows], k[:, keys]) for q, k, rows, keys in both]
        result["qk_cosine"] = np.mean(cosines, axis=0)
    return result


def head(layer: Layer) -> dict[str, Array]:
    """The head family."""
    outputs = head_outputs(layer)
    if outputs is None:
        return {}
    x = _centred(outputs, layer.queries).swapaxes(0, 1)
    return {name: getattr(definitions, name)(x) for name in ("redundancy", "complementarity")}


#: Functions by family of metrics.
METRICS: dict[str, Callable[[Layer], dict[str, Array]]] = {
    "entropy": entropy,
    "pattern": pattern,
    "cone": cone,
    "stream": stream,
    "subspace": subspace,
    "head": head,
}
