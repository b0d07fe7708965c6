"""Ranks the heads that could be pruned, from a run's record alone. No torch."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError, RunError
from lightning_geo.utils.formatting import number
from lightning_geo.utils.views import view

__all__ = ["Head", "PruningPlan", "RankedHead", "check_fraction", "last_sample_with", "pruning_plan"]

#: Similarity (linear CKA) at which a reason names the other head.
_ALIKE = 0.5

#: Similarity at which heads begin to count as duplicates. A lower threshold fails: in the last layer of a
#: BERT fine-tuned on news all heads are 0.9 similar, and removing one of them costs more than removing a
#: less similar head.
_SAME = 0.95


class Head(NamedTuple):
    """A head of a stack, counted from 0."""

    stack: str
    layer: int
    head: int


@dataclass(frozen=True)
class RankedHead:
    """A head's place in the order of removal.

    Args:
        head: The head.
        importance: Its measured importance.
        similarity: Largest linear CKA between its output and that of a head of its layer that is removed
            later; NaN if there is none, or similarities are unknown.
        similar: Number of that head.
        score: Key of the order: the importance, discounted by up to half if that head is a duplicate.
        reason: The reason for its place, as text.
    """

    head: Head
    importance: float
    similarity: float
    similar: int | None
    score: float
    reason: str


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """The heads to remove, and the order of all heads. A notebook shows which they are, and why.

    Args:
        ranking: All heads, those to remove first.
        count: Number of heads to remove.
        step: Step of the sample that the plan is based on.
        similarities: Whether the order uses similarities of heads, or importance alone.
        structure: Number of heads of each layer, by stack, of the models that the plan fits.
    """

    ranking: tuple[RankedHead, ...]
    count: int
    step: int
    similarities: bool
    structure: dict[str, list[int]]

    def __repr__(self) -> str:
        return f"PruningPlan({self.count} of {len(self.ranking)} heads, from step {self.step})"

    def _repr_html_(self) -> str:
        return str(view(self, "html"))

    @property
    def heads(self) -> tuple[Head, ...]:
        """Those to remove, in order."""
        return tuple(ranked.head for ranked in self.ranking[: self.count])

    @property
    def by_importance(self) -> tuple[Head, ...]:
        """All heads in the order of importance alone."""
        return tuple(r.head for r in sorted(self.ranking, key=lambda r: (r.importance, r.head)))


def pruning_plan(history: GeometryHistory, fraction: float = 0.3) -> PruningPlan:
    r"""Rank a run's heads by how little their removal should cost, and mark the first ones for removal.

    Heads are removed one by one, each time the one with the smallest score

    .. math:: \text{importance} \cdot (1 - r / 2), \quad r = \max(0, (s - 0.95) / 0.05)

    where s is its similarity (linear CKA of the outputs) to the most similar head that its layer still has.
    Of two duplicates one is removed early, and the other then counts in full. A plan is a first-order
    estimate: :func:`~lightning_geo.evaluate_plan` checks it by silencing the heads.

    Args:
        history: A run that measured ``importance``. The plan uses the last sample that has it, with the
            head-pair similarities of that sample (stored at a run's first and last sample); without these,
            the order is that of importance alone.
        fraction: Share of all heads to remove.

    Returns:
        The plan; ``plan.heads`` are those to remove.

    Raises:
        TypeError: If ``fraction`` is no number.
        ValueError: If it is not within (0, 1), or the run has no importance.

    Example:
        >>> from lightning_geo import GeometryRecord
        >>> importance = np.array([[0.9, 1.0, 0.6, 0.7]])
        >>> twins = np.eye(4)[None]
        >>> twins[0, 0, 1] = twins[0, 1, 0] = 1.0
        >>> model = {"stacks": {"encoder": {"heads": [4]}}}
        >>> record = GeometryRecord(
        ...     {"encoder": {"importance": importance}}, model, {"encoder": {"head_similarity": twins}})
        >>> plan = pruning_plan(GeometryHistory([record]), 0.5)
        >>> [head.head for head in plan.heads]  # of the important twins 0 and 1 the one, not both
        [0, 2]
    """
    check_type("history", history, GeometryHistory, "a GeometryHistory, as `load_history` returns it,")
    check_fraction(fraction)
    sample = last_sample_with(history, "importance")
    if sample is None:
        raise RunError(
            f"{repr(history.path) if history.path else 'This run'} has no metric `importance`. It has only "
            f"{', '.join(history.keys()[:8])}, … "
            'Record it with `GeometryMonitor(metrics=["importance", "head", ...])`, which needs a loss (see '
            "its `loss_fn`)."
        )
    record = history.record(sample)
    importance = {stack: arrays["importance"] for stack, arrays in record.stacks.items()
                  if "importance" in arrays}  # fmt: skip
    similarity = {stack: matrices["head_similarity"] for stack, matrices in record.matrices.items()
                  if "head_similarity" in matrices}  # fmt: skip
    known = bool(similarity) and all(stack in similarity for stack in importance)
    ranking = _ranked(importance, similarity if known else {})
    stacks = record.model["stacks"]
    heads = {stack: [int(count) for count in about["heads"]] for stack, about in stacks.items()}
    count = max(1, round(fraction * len(ranking)))
    return PruningPlan(tuple(ranking), count, record.step, known, heads)


def check_fraction(fraction: float) -> None:
    """Check a share of heads.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not within (0, 1).
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
        raise ArgumentTypeError(f"Expected `fraction` to be a number but got {type(fraction).__name__}.")
    if not 0 < fraction < 1:
        raise ArgumentError(
            f"Expected `fraction` to be a share of the heads within (0, 1) but got {fraction}."
        )


def last_sample_with(history: GeometryHistory, metric: str) -> int | None:
    """Return the number of the last sample that has a value of a metric; ``None`` if none has."""
    for sample in reversed(range(len(history))):
        arrays = history.record(sample).stacks.values()
        if any(np.isfinite(a[metric]).any() for a in arrays if metric in a):
            return sample
    return None


def _ranked(importance: dict[str, NDArray[Any]], similarity: dict[str, NDArray[Any]]) -> list[RankedHead]:
    own = {
        Head(stack, int(layer), int(head)): float(values[layer, head])
        for stack, values in importance.items()
        for layer, head in np.argwhere(np.isfinite(values))
    }
    left: dict[tuple[str, int], set[int]] = {}
    for head in own:
        left.setdefault(head[:2], set()).add(head.head)

    def judged(head: Head) -> tuple[float, Head, float, int | None]:
        like, other = _most_like(head, left[head[:2]], similarity)
        repeated = 0.0 if other is None else max(0.0, (like - _SAME) / (1 - _SAME))
        return own[head] * (1 - repeated / 2), head, like, other

    ranking, order = [], sorted(own.values())
    twins: dict[Head, list[int]] = {}
    waiting = [judged(head)[:2] for head in own]
    heapq.heapify(waiting)
    while waiting:
        known, head = heapq.heappop(waiting)
        score, _, like, other = judged(head)
        if score > known:  # its duplicate has been removed since; scores only grow, so it goes back
            heapq.heappush(waiting, (score, head))
            continue
        left[head[:2]].remove(head.head)
        if other is not None and like >= _SAME:
            twins.setdefault(head._replace(head=other), []).append(head.head)
        reason = _reason(own[head], order, like, other, sorted(twins.get(head, [])))
        ranking.append(RankedHead(head, own[head], like, other, score, reason))
    return ranking


def _most_like(head: Head, left: set[int], similarity: dict[str, NDArray[Any]]) -> tuple[float, int | None]:
    """Similarity and number of the most similar head that the layer still has."""
    if head.stack not in similarity:
        return math.nan, None
    row = similarity[head.stack][head.layer, head.head]
    others = [other for other in sorted(left) if other != head.head and np.isfinite(row[other])]
    if not others:
        return math.nan, None
    most = max(others, key=lambda other: row[other])
    return float(row[most]), most


def _reason(value: float, order: list[float], like: float, other: int | None, twins: list[int]) -> str:
    place = order.index(value) + 1
    middle = order[len(order) // 2]
    times = f" ({number(value / middle)}× the median)" if middle else ""
    parts = [f"importance rank {place} of {len(order)}{times}"]
    if other is not None and like >= _ALIKE:
        verb = "duplicates" if like >= _SAME else "resembles"
        parts.append(f"{verb} head {other} ({like:.2f})")
    if twins:
        parts.append(f"kept in place of head{'s' * (len(twins) > 1)} {', '.join(map(str, twins))}")
    return "; ".join(parts)
