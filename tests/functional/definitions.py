"""What the functions of ``functional`` are, of one item and in float64: slow, plain NumPy and SciPy.

Nothing here imports lightning_geo.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[Any]

# -- tokens [n, d]


def mean(values: Any) -> float:
    """Of the values that are defined; NaN where there is none."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else np.nan


def unit(x: Array) -> Array:
    """Directions; a zero vector has none and is zero."""
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(lengths == 0, 1, lengths)


def cone_index(x: Array) -> float:
    return float(np.linalg.norm(unit(x).sum(0))) if len(x) else np.nan


def cone(x: Array) -> float:
    return cone_index(x) / max(len(x), 1)


def mean_cosine(x: Array) -> float:
    """Pair by pair."""
    return mean([a @ b for a, b in itertools.permutations(unit(x), 2)])


def token_norm(x: Array) -> float:
    return mean(np.linalg.norm(x, axis=-1))


def _moment(function: Callable[..., Any], x: Array) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns about constant tokens and returns NaN for them
        return mean(function(x, axis=-1))


def skewness(x: Array) -> float:
    return _moment(scipy.stats.skew, x)


def kurtosis(x: Array) -> float:
    return _moment(scipy.stats.kurtosis, x)


def update_ratio(x: Array, before: Array) -> float:
    pairs = zip(x, before, strict=True)
    return mean([np.linalg.norm(t - b) / np.linalg.norm(b) for t, b in pairs if b.any()])


def qk_cosine(query: Array, key: Array) -> Array:
    """Of ``[H, Nq, D]`` and ``[Hk, Nk, D]``: one per query head, pair by pair."""
    keys = np.repeat(key, len(query) // len(key), axis=0)
    return np.array(
        [mean([a @ b for a in unit(q) for b in unit(k)]) for q, k in zip(query, keys, strict=True)]
    )


# -- shares and spectra


def normalized_entropy(entropy: Array, keys: Array) -> float:
    return float(entropy / np.log(keys)) if keys >= 2 else np.nan


def key_entropy(received: Array) -> Array:
    """Of ``[H, n]``."""
    n = received.shape[-1]
    return np.array(
        [scipy.stats.entropy(r) / np.log(n) if n > 1 and r.sum() > 0 else np.nan for r in received]
    )


def effective_rank(spectrum: Array) -> float:
    return float(np.exp(scipy.stats.entropy(spectrum)))


def participation_ratio(spectrum: Array) -> float:
    return float(spectrum.sum() ** 2 / (spectrum**2).sum())


def stable_rank(spectrum: Array) -> float:
    return float(spectrum.sum() / spectrum.max())


# -- subspaces, bases [d, r]


def principal_angles(u: Array, v: Array) -> Array:
    return scipy.linalg.subspace_angles(u, v)[::-1]


def projection_similarity(u: Array, v: Array) -> float:
    return float(np.mean(np.cos(principal_angles(u, v)) ** 2))


def subspace_distance(u: Array, v: Array) -> float:
    return float(np.sqrt(np.mean(np.sin(principal_angles(u, v)) ** 2)))


def projector(covariance: Array, rank: int) -> Array:
    """Onto the strongest directions, which may be any where eigenvalues are equal."""
    vectors = np.linalg.svd(covariance)[0][:, :rank]
    return vectors @ vectors.T


# -- heads


def linear_cka(x: Array, y: Array) -> float:
    """Kornblith's definition through the n × n Gram matrices, centred by H on both sides."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
    with np.errstate(invalid="ignore"):  # equal rows: 0/0
        return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def head_similarity(x: Array) -> Array:
    """Of outputs [n, H, D]."""
    heads = range(x.shape[1])
    return np.array([[linear_cka(x[:, i], x[:, j]) for j in heads] for i in heads])


def redundancy(x: Array) -> Array:
    pairs = head_similarity(x)
    np.fill_diagonal(pairs, -np.inf)
    largest = pairs.max(-1)
    return np.where(largest == -np.inf, np.nan, largest)


def _dimensions(x: Array) -> float:
    """Of tokens [n, d]."""
    return participation_ratio(np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2)


def complementarity(x: Array) -> float:
    return _dimensions(x.reshape(len(x), -1)) / sum(_dimensions(x[:, h]) for h in range(x.shape[1]))


# -- weights [n] now and before


def update_size(now: Array, before: Array, each: Array) -> float:
    size = sum(n * w * w for n, w in zip(each, before, strict=True))
    change = sum(n * (w - v) ** 2 for n, w, v in zip(each, now, before, strict=True))
    return float(np.sqrt(change / size)) if size else np.nan


def unchanged_share(now: Array, before: Array) -> float:
    return float(np.mean([w.tobytes() == v.tobytes() for w, v in zip(now, before, strict=True)]))


def bf16_share(now: Array, before: Array) -> float:
    """bfloat16 has eight bits of mantissa, the first of which is not stored."""
    changed = [w for w, v in zip(now, before, strict=True) if w not in (v, 0)]
    held = [float(np.frexp(w)[0] * 256).is_integer() for w in changed]
    return float(np.mean(held)) if held else np.nan
