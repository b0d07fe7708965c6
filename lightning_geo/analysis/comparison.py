"""Two runs side by side: aligned by step, and where they differ most. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.alignment import Alignment, align
from lightning_geo.analysis.runs import describe_model, find_series, heads_per_layer, metric_series
from lightning_geo.metrics.reductions import root_mean_square
from lightning_geo.metrics.selection import select
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.errors import RunError

__all__ = [
    "Comparison",
    "Difference",
    "Row",
    "SubspaceDistance",
    "compare",
    "selected",
    "subspace_distance",
]

Array = NDArray[np.float64]

_OF_A_FAMILY = 3  # rows; its metrics say much the same


class Row(NamedTuple):
    """One number of two runs.

    Args:
        metric: Name, with the stack before it where there are several.
        layer: Number of the layer.
        head: Number of the head; ``None`` where the metric has none.
        a: Value in the first run.
        b: Value in the second run.
        difference: ``b − a``.
        moved_a: Highest minus lowest value within the first run.
        moved_b: The same within the second run.
        relative: The difference in units of how much the metric moves, see :class:`Difference`.
    """

    metric: str
    layer: int
    head: int | None
    a: float
    b: float
    difference: float
    moved_a: float
    moved_b: float
    relative: float


@dataclass(frozen=True)
class Difference:
    """One metric of two runs at one step; all arrays are [layer] or [layer, head].

    Args:
        metric: Name, with the stack before it where there are several.
        spec: The metric.
        a: Values of the first run.
        b: Values of the second run.
        moved_a: Highest minus lowest value within the first run.
        moved_b: The same within the second run.
    """

    metric: str
    spec: MetricSpec
    a: Array
    b: Array
    moved_a: Array
    moved_b: Array

    @property
    def difference(self) -> Array:
        """``b − a``."""
        return self.b - self.a

    @property
    def movement(self) -> float:
        """How much the metric moves within a run: root mean square of both runs' movements, all cells."""
        movement = float(root_mean_square(np.stack([self.moved_a, self.moved_b])))
        return movement if np.isfinite(movement) else 0.0

    @property
    def relative(self) -> Array:
        """The difference in units of :attr:`movement`, which makes metrics of all units comparable.

        The unit is the metric's and not the cell's: a head that hardly moves in either run would come first
        otherwise, whatever it does.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.difference == 0, 0.0, self.difference / self.movement)

    @property
    def one_sided(self) -> int:
        """How many cells have a value in one run alone."""
        return int((np.isfinite(self.a) != np.isfinite(self.b)).sum())

    def rows(self) -> Iterator[Row]:
        """Yield every cell that has a value in both runs."""
        difference, relative = self.difference, self.relative
        for cell in zip(*np.nonzero(np.isfinite(difference)), strict=True):
            head = int(cell[1]) if len(cell) > 1 else None
            numbers = (self.a, self.b, difference, self.moved_a, self.moved_b, relative)
            yield Row(self.metric, int(cell[0]), head, *(float(array[cell]) for array in numbers))


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


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Args:
        alignment: Which samples belong together.
        steps: Step of each run at which it was compared.
        differences: One per metric that both runs have, in catalog order.
        subspaces: One per role and pair of samples where both runs kept bases.
        probe: Whether both runs were measured on the same inputs: ``"same"``, ``"different"`` or
            ``"batches"`` where one was measured on its training batches.
        notes: What else a reader has to know, one sentence each.
    """

    alignment: Alignment
    steps: tuple[int, int]
    differences: tuple[Difference, ...]
    subspaces: tuple[SubspaceDistance, ...]
    probe: str
    notes: tuple[str, ...]

    def rows(self) -> list[Row]:
        """Every cell of every metric, what differs most first."""
        rows = [row for difference in self.differences for row in difference.rows()]
        return sorted(rows, key=lambda row: -abs(row.relative))

    def telling(self, count: int, *, each_metric: bool = True) -> list[Row]:
        """Return the rows that say most.

        Args:
            count: How many at most.
            each_metric: Of each metric the largest alone, and three of a family: they say much the same.
        """
        rows = self.rows()
        if not each_metric:
            return rows[:count]
        families = {difference.metric: difference.spec.family for difference in self.differences}
        left = dict.fromkeys(families.values(), _OF_A_FAMILY)
        first: dict[str, Row] = {}
        for row in rows:
            first.setdefault(row.metric, row)
        shown = []
        for row in first.values():
            family = families[row.metric]
            left[family] -= 1
            if left[family] >= 0:
                shown.append(row)
        return shown[:count]

    def largest(self, metric: str) -> float:
        """Return the largest absolute difference of a metric over layers and heads.

        A cell that has a value in one run alone differs infinitely: a model that became NaN must not pass.

        Args:
            metric: One metric, not a family; all its roles, stages and stacks count.

        Raises:
            RunError: If the metric is unknown, or not in the comparison.
        """
        names = selected([f"metric:{metric.removeprefix('metric:')}"])
        chosen = [d for d in self.differences if d.metric.rpartition("/")[2] in names]
        found = [float(np.nanmax(np.abs(d.difference))) for d in chosen if np.isfinite(d.difference).any()]
        if any(d.one_sided for d in chosen):
            return float("inf")
        if not found:
            raise RunError(f"{metric!r} has no value in both runs, so that no limit on it can be checked.")
        return max(found)

    def by_layer(self) -> list[tuple[str, int, float]]:
        """Root mean square of the relative difference by stack and layer, largest first."""
        sizes: dict[tuple[str, int], list[float]] = {}
        for difference in self.differences:
            stack = difference.metric.rpartition("/")[0]
            for layer, size in enumerate(root_mean_square(difference.relative, keep=1)):
                if np.isfinite(size):
                    sizes.setdefault((stack, layer), []).append(float(size))
        found = [
            (stack, layer, float(root_mean_square(np.array(of)))) for (stack, layer), of in sizes.items()
        ]
        return sorted(found, key=lambda entry: -entry[2])


def subspace_distance(u: NDArray[Any], v: NDArray[Any]) -> Array:
    """Root mean squared sine of the principal angles; see :mod:`lightning_geo.functional.subspace`.

    Args:
        u: [..., d, r] with orthonormal columns.
        v: The same shape.

    Example:
        >>> subspace_distance(np.array([[1.0], [0.0]]), np.array([[0.6], [0.8]])).round(6)
        np.float64(0.8)
    """
    first, second = u.astype(np.float64), v.astype(np.float64)
    residual = second - first @ (first.swapaxes(-1, -2) @ second)
    distance: Array = np.sqrt((residual**2).sum(axis=(-2, -1)) / u.shape[-1]).clip(max=1)
    return distance


def compare(
    a: GeometryHistory,
    b: GeometryHistory,
    metrics: Iterable[str] | None = None,
    step: int | None = None,
) -> Comparison:
    """Lay two runs side by side.

    Args:
        a: The run to compare with.
        b: The run that is compared.
        metrics: Families, metrics or stored names; ``None`` for all that both runs have.
        step: Compare at the common step nearest to this one; ``None`` for the last.

    Raises:
        RunError: If the runs are of different models, or a metric is unknown or in neither run.

    Example:
        >>> from lightning_geo import GeometryRecord
        >>> runs = [
        ...     GeometryHistory([
        ...         GeometryRecord({"encoder": {"entropy": np.full((1, 2), step * rate)}}, step=step)
        ...         for step in (0, 10)
        ...     ])
        ...     for rate in (0.1, 0.2)
        ... ]
        >>> [round(float(value), 3) for value in compare(*runs).differences[0].difference[0]]
        [1.0, 1.0]
    """
    stacks = _matched_stacks(a, b)
    alignment = align(a.steps, b.steps)
    last = len(alignment.a) - 1
    if step is not None:
        last = int(np.abs(a.steps[alignment.a] - step).argmin())
    window = Alignment(alignment.a[: last + 1], alignment.b[: last + 1], "")
    names = None if metrics is None else selected(metrics)
    both, differences = [], []
    for of in metric_series(a):
        other = find_series(b, stacks[of.stack], of.name)
        if other is None or other.values.shape[1:] != of.values.shape[1:]:
            continue
        both.append(of.key)
        if names is None or of.name in names:
            first, second = of.values[window.a], other.values[window.b]
            differences.append(
                Difference(of.key, of.spec, first[-1], second[-1], _moved(first), _moved(second))
            )
    if not differences:
        wanted = "No metric" if names is None else f"None of {', '.join(names)}"
        raise RunError(f"{wanted} has values in both runs. Both have: {', '.join(both) or 'nothing'}.")
    steps = int(a.steps[window.a[-1]]), int(b.steps[window.b[-1]])
    return Comparison(
        alignment, steps, tuple(differences), tuple(_subspaces(a, b, stacks)), _probe(a, b),
        tuple(_notes(a, b, steps, step)),
    )  # fmt: skip


def _moved(values: Array) -> Array:
    """Highest minus lowest over samples, NaN where there is no value."""
    defined = np.isfinite(values)
    low = np.where(defined, values, np.inf).min(axis=0)
    high = np.where(defined, values, -np.inf).max(axis=0)
    return np.where(defined.any(axis=0), high - np.where(defined.any(axis=0), low, 0), np.nan)


def selected(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return the stored names that families and metrics mean.

    Raises:
        RunError: If one is unknown.
    """
    try:
        return select(metrics)
    except ValueError as error:
        raise RunError(str(error)) from error


def _probe(a: GeometryHistory, b: GeometryHistory) -> str:
    prints = [str(history.facts["probe"][-1]) for history in (a, b)]
    if not all(prints):
        return "batches"
    return "same" if prints[0] == prints[1] else "different"


def _matched_stacks(a: GeometryHistory, b: GeometryHistory) -> dict[str, str]:
    """The second run's stack for each of the first's."""
    ours, theirs = heads_per_layer(a), heads_per_layer(b)
    if ours == theirs:
        return {stack: stack for stack in ours}
    if len(ours) == 1 and list(ours.values()) == list(theirs.values()):
        return dict(zip(ours, theirs, strict=True))  # the same model within another module
    raise RunError(
        f"The runs are of different models, and layers and heads that do not correspond cannot be compared: "
        f"{describe_model(a)}, and {describe_model(b)}."
    )


def _subspaces(a: GeometryHistory, b: GeometryHistory, stacks: dict[str, str]) -> Iterator[SubspaceDistance]:
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


def _notes(
    a: GeometryHistory, b: GeometryHistory, steps: tuple[int, int], wanted: int | None
) -> Iterator[str]:
    if wanted is not None and steps[0] != wanted:
        yield f"Step {wanted} is not a sample of both runs: step {steps[0]} is nearest."
    if wanted is None and a.steps[-1] != b.steps[-1]:
        yield f"The runs end at different steps, A at {a.steps[-1]} and B at {b.steps[-1]}."
    models = [history.structure.get("model") for history in (a, b)]
    if models[0] != models[1]:
        yield f"The models' classes differ ({models[0]} and {models[1]}), their layers and heads do not."
    mine, other = ({name for arrays in h.stacks.values() for name in arrays} for h in (a, b))
    for label, only in (("A", mine - other), ("B", other - mine)):
        if only:
            yield f"Only in {label}: {', '.join(sorted(only))}."
