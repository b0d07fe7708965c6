"""How far apart the subspaces of two runs are, from the bases in their records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.arrays import Array

__all__ = ["SubspaceDistance", "subspace_distance", "subspace_distances"]


@dataclass(frozen=True)
class SubspaceDistance:
    """How far apart the subspaces of two runs are.

    Args:
        stack: Stack of layers.
        role: ``query``, ``key``, ``value`` or ``output``.
        steps: Step of each run at which the bases were kept.
        distance: [layer, head], 0 the same subspace, 1 orthogonal.
    """

    stack: str
    role: str
    steps: tuple[int, int]
    distance: Array


def subspace_distance(u: NDArray[Any], v: NDArray[Any]) -> Array:
    """Root mean squared sine of the principal angles; see :mod:`lightning_geo.functional.subspace`.

    Args:
        u: [..., d, r] with orthonormal columns.
        v: The same shape.

    Example:
        >>> print(subspace_distance(np.array([[1.0], [0.0]]), np.array([[0.6], [0.8]])).round(6))
        0.8
    """
    first, second = u.astype(np.float64), v.astype(np.float64)
    residual = second - first @ (first.swapaxes(-1, -2) @ second)
    distance: Array = np.sqrt((residual**2).sum(axis=(-2, -1)) / u.shape[-1]).clip(max=1)
    return distance


def subspace_distances(
    a: GeometryHistory, b: GeometryHistory, stacks: Mapping[str, str]
) -> Iterator[SubspaceDistance]:
    """Yield the distances at the first and at the last samples where both runs kept their bases.

    Args:
        a: The first run.
        b: The second run.
        stacks: The second run's stack for each of the first's.
    """
    kept = [[r for r in (h.record(i) for i in range(len(h))) if r.matrices] for h in (a, b)]
    if not all(kept):
        return
    pairs = [(kept[0][0], kept[1][0])]
    if len(kept[0]) > 1 and len(kept[1]) > 1:
        pairs.append((kept[0][-1], kept[1][-1]))
    for first, second in pairs:
        for ours, theirs in stacks.items():
            for name, basis in first.matrices.get(ours, {}).items():
                other = second.matrices.get(theirs, {}).get(name)
                if name.startswith("basis.") and other is not None and other.shape == basis.shape:
                    role, distance = name.removeprefix("basis."), subspace_distance(basis, other)
                    yield SubspaceDistance(ours, role, (first.step, second.step), distance)
