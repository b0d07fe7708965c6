"""Ranks the heads that repeat another one of their layer, for runs without importance. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.pruning import Head, check_fraction, last_sample_with
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.errors import RunError

__all__ = ["RedundancyRanking", "RedundantHead", "redundancy_ranking"]


@dataclass(frozen=True)
class RedundantHead:
    """A head, and the head of its layer that it is most like.

    Args:
        head: The head.
        redundancy: As measured: its largest similarity (linear CKA) to any other head of its layer.
        similarity: The largest to a head of its layer that comes later in the ranking; NaN if there is none,
            or similarities are unknown.
        similar: Number of that head.
    """

    head: Head
    redundancy: float
    similarity: float
    similar: int | None


@dataclass(frozen=True)
class RedundancyRanking:
    """All heads, those first that repeat another one most. Not a plan: it does not know what a removal costs.

    Args:
        ranking: All heads.
        count: How many of them were asked for.
        step: Step of the sample that it is based on.
        similarities: Whether the sample stored which heads are alike. If it did not, both heads of a pair
            stand high in the ranking.
    """

    ranking: tuple[RedundantHead, ...]
    count: int
    step: int
    similarities: bool


def redundancy_ranking(history: GeometryHistory, fraction: float = 0.3) -> RedundancyRanking:
    """Rank a run's heads by how much each repeats another one of its layer.

    Of the two most similar heads of a layer the one with the lower number is taken; the other one is then
    ranked by its similarity to the heads that are left. So a pair of twins is named once.

    Args:
        history: A run that measured ``redundancy``, as runs do by default. The last sample that has it
            counts.
        fraction: Share of all heads to name.

    Raises:
        TypeError: If ``fraction`` is no number.
        ValueError: If it is not within (0, 1), or the run has no redundancy.

    Example:
        >>> from lightning_geo import GeometryRecord
        >>> alike = np.array([[[1.0, 0.9, 0.2], [0.9, 1.0, 0.3], [0.2, 0.3, 1.0]]])
        >>> record = GeometryRecord(
        ...     {"encoder": {"redundancy": np.array([[0.9, 0.9, 0.3]])}},
        ...     matrices={"encoder": {"head_similarity": alike}})
        >>> ranking = redundancy_ranking(GeometryHistory([record])).ranking
        >>> [(ranked.head.head, ranked.similar, ranked.similarity) for ranked in ranking]
        [(0, 1, 0.9), (1, 2, 0.3), (2, None, nan)]
    """
    check_fraction(fraction)
    sample = last_sample_with(history, "redundancy")
    if sample is None:
        name = repr(history.path) if history.path else "This run"
        raise RunError(
            f"{name} has neither `importance` nor `redundancy`. "
            'Record them with `GeometryMonitor(metrics=["importance", "head", ...])`.'
        )
    record = history.record(sample)
    measured = {s: arrays["redundancy"] for s, arrays in record.stacks.items() if "redundancy" in arrays}
    similarity = {stack: record.matrices.get(stack, {}).get("head_similarity") for stack in measured}
    known = all(matrix is not None for matrix in similarity.values())
    heads = [
        ranked
        for stack, values in measured.items()
        for layer in range(len(values))
        for ranked in _of_layer(stack, layer, values[layer], similarity[stack] if known else None)
    ]
    # a layer's similarities only fall as heads are taken, so sorting keeps each layer's order
    heads.sort(key=lambda ranked: _last_if_unknown(ranked.similarity if known else ranked.redundancy))
    return RedundancyRanking(tuple(heads), max(1, round(fraction * len(heads))), record.step, known)


def _last_if_unknown(similarity: float) -> float:
    return math.inf if math.isnan(similarity) else -similarity


def _of_layer(
    stack: str, layer: int, redundancy: NDArray[Any], similarity: NDArray[Any] | None
) -> list[RedundantHead]:
    """Return the heads of a layer, of the two most similar ones the lower number first."""
    present = np.flatnonzero(np.isfinite(redundancy)).tolist()
    if similarity is None:
        return [
            RedundantHead(Head(stack, layer, head), float(redundancy[head]), math.nan, None)
            for head in present
        ]
    pairs = similarity[layer][np.ix_(present, present)].astype(np.float64)
    pairs[~np.isfinite(pairs)] = -np.inf
    np.fill_diagonal(pairs, -np.inf)
    ranked, left = [], list(range(len(present)))
    while left:
        first, second = divmod(int(pairs.argmax()), len(present))
        has_partner = bool(np.isfinite(pairs[first, second]))
        taken = first if has_partner else left[0]
        left.remove(taken)
        ranked.append(
            RedundantHead(
                Head(stack, layer, present[taken]),
                float(redundancy[present[taken]]),
                float(pairs[first, second]) if has_partner else math.nan,
                present[second] if has_partner else None,
            )
        )
        pairs[taken, :] = pairs[:, taken] = -np.inf
    return ranked
