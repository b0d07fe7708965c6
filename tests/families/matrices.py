"""The families ``gates``, ``projection`` and ``score_spectra`` from one head's full matrices in float64.

Nothing here imports lightning_geo.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

Array = NDArray[Any]
#: As the catalogue's formulas and METRICS say; written out here, so that a changed threshold is seen.
THRESHOLDS = {
    "open": 0.85,
    "closed": 0.40,
    "instance": 0.40,
    "backward": 0.35,
    "forward": 0.35,
    "directional": 0.85,
    "cluster": 0.40,
}


def shannon(shares: Array) -> float:
    """In nats."""
    shares = shares[shares > 1e-12]
    return float(-(shares * np.log(shares)).sum())


# -- score_spectra


def score_entropy(products: Array) -> float:
    """Of the dot products of visible pairs."""
    return shannon(np.histogram(products, 20)[0] / products.size)


def von_neumann_entropy(matrix: Array, *, paper: bool = False) -> float:
    """Of a matrix of scores [n, n]."""
    size = np.abs(np.linalg.eigvals(matrix))
    if not size.any():
        return np.nan
    return shannon(size / np.sqrt((size**2).sum()) if paper else size**2 / (size**2).sum())


# -- gates


def _gate_shares(p: Array, visible: Array, queries: Array, keys: Array) -> dict[str, float]:
    """What the conditions are on, from one attention matrix [n, n]."""
    several = queries & (visible.sum(-1) >= 2)
    entropy = [
        shannon(row) / np.log(count) for row, count in zip(p[several], visible.sum(-1)[several], strict=True)
    ]
    p = np.where(queries[:, None], p, 0.0)
    i, j = np.meshgrid(*map(np.arange, p.shape), indexing="ij")
    received = p.sum(0)[keys]
    rows = queries.sum()
    return {
        "open": float(np.mean(entropy)) if entropy else np.nan,
        "closed": float(p[:, keys.argmax()].sum() / rows),
        "instance": float(np.trace(p) / rows),
        "backward": float(p[(j < i) & (j >= i - 4)].sum() / rows),
        "forward": float(p[(j > i) & (j <= i + 4)].sum() / rows),
        "directional": shannon(received / received.sum()) / np.log(keys.sum()) if keys.sum() > 1 else np.nan,
        "cluster": float(((p * p.T).sum() - (np.diag(p) ** 2).sum()) / (p**2).sum()),
    }


def gate_margins(p: Array, visible: Array, queries: Array, keys: Array) -> dict[str, float]:
    """By gate: how far its least fulfilled condition is from the threshold.

    Args:
        p: One head's attention matrix [n, n].
        visible: Boolean [n, n].
        queries: Boolean [n], which rows are real tokens.
        keys: Boolean [n], the same for keys.
    """
    over = {gate: share - THRESHOLDS[gate] for gate, share in _gate_shares(p, visible, queries, keys).items()}
    over["directional"] *= -1
    over["cluster"] = np.min([over["cluster"], -over["open"], -over["closed"], -over["instance"]])
    over["directional"] = np.min([over["directional"], -over["open"], -over["closed"]])
    return over


# -- projection


def projection_strength(x: Array, weight: Array) -> float:
    """Mean over tokens [n, d] of the share in the row space of a weight [D, d], by its full d×d projector."""
    projector = np.linalg.pinv(weight) @ weight
    return float(np.mean(np.linalg.norm(x @ projector, axis=-1) ** 2 / np.linalg.norm(x, axis=-1) ** 2))


def mean_angle(one: Array, other: Array) -> float:
    """Mean principal angle between the row spaces of two weights [D, d]."""
    return float(subspace_angles(one.T, other.T).mean())


def score_norm_shares(query: Array, key: Array, seen: Array) -> Array:
    """[3]: shares of queries' [Nq, D] lengths, of keys' [Nk, D] and of directions, over pairs seen."""
    score = np.log(np.abs(query @ key.T))[seen]
    lengths = [np.log(np.linalg.norm(x, axis=-1)) for x in (query, key)]
    long, wide = lengths[0][:, None] + 0 * seen, lengths[1] + 0 * seen
    if seen.sum() < 2:
        return np.full(3, np.nan)
    terms = [long[seen], wide[seen], score - long[seen] - wide[seen]]
    return np.array([np.cov(term, score)[0, 1] / np.var(score, ddof=1) for term in terms])
