"""Compares two runs: aligns them by step, and finds where they differ most. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real

import numpy as np

from lightning_geo.analysis.alignment import Alignment, align
from lightning_geo.analysis.differences import Difference, Row
from lightning_geo.analysis.runs import (
    describe_model,
    find_series,
    heads_per_layer,
    metric_series,
    stored_names,
)
from lightning_geo.analysis.subspaces import SubspaceDistance, subspace_distances
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.foreign_specs import differing_fields
from lightning_geo.metrics.reductions import root_mean_square
from lightning_geo.metrics.selection import is_standard_error
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.drawing import Drawing
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.views import view

__all__ = ["Comparison", "compare", "matched_stacks"]


_PER_FAMILY = 3  # rows: metrics of one family are strongly correlated


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of :func:`compare`. A notebook shows where the runs differ most.

    Args:
        alignment: Which samples belong together.
        steps: Step of each run at which it was compared.
        differences: One per metric that both runs have, in catalog order.
        subspaces: One per role and pair of samples where both runs kept bases.
        probe: Whether both runs were measured on the same inputs: ``"same"``, ``"different"`` or
            ``"batches"`` where one was measured on its training batches.
        notes: Caveats for the reader, one sentence each.
    """

    alignment: Alignment
    steps: tuple[int, int]
    differences: tuple[Difference, ...]
    subspaces: tuple[SubspaceDistance, ...]
    probe: str
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        steps = " and ".join(map(str, dict.fromkeys(self.steps)))
        return f"Comparison({len(self.differences)} metrics at step {steps})"

    def plot(self, metric: str | None = None) -> Drawing:
        """Draw a metric of both runs on one scale, and what they differ by.

        Args:
            metric: A stored name, as in :attr:`Difference.metric`; ``None`` for the one that differs most.

        Raises:
            KeyError: If the comparison lacks the metric.
        """
        drawing: Drawing = view(self, "plot", metric)
        return drawing

    def _repr_html_(self) -> str:
        return str(view(self, "html"))

    def rows(self) -> list[Row]:
        """Every cell of every metric, largest difference first."""
        rows = [row for difference in self.differences for row in difference.rows()]
        return sorted(rows, key=lambda row: -abs(row.relative))

    def own_metrics(self) -> list[MetricSpec]:
        """The specs of the compared metrics that are not built in."""
        specs = {difference.spec.name: difference.spec for difference in self.differences}
        return [spec for name, spec in specs.items() if name not in CATALOG and not is_standard_error(name)]

    def telling(self, count: int, *, each_metric: bool = True) -> list[Row]:
        """Return the rows that differ most.

        Args:
            count: How many at most.
            each_metric: Whether to keep only the largest difference of each metric, and at most three metrics
                per family.
        """
        rows = self.rows()
        if not each_metric:
            return rows[:count]
        families = {difference.metric: difference.spec.family for difference in self.differences}
        left = dict.fromkeys(families.values(), _PER_FAMILY)
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
        specs = {spec.name: spec for spec in self.own_metrics()}
        names = stored_names([f"metric:{metric.removeprefix('metric:')}"], specs)
        requested = [d for d in self.differences if d.metric.rpartition("/")[2] in names]
        largest = [
            float(np.nanmax(np.abs(d.difference))) for d in requested if np.isfinite(d.difference).any()
        ]
        if any(d.one_sided for d in requested):
            return float("inf")
        if not largest:
            raise RunError(f"Cannot check a limit on {metric!r}: no layer or head has a value in both runs.")
        return max(largest)

    def by_layer(self) -> list[tuple[str, int, float]]:
        """Root mean square of the relative difference by stack and layer, largest first."""
        sizes: dict[tuple[str, int], list[float]] = {}
        for difference in self.differences:
            stack = difference.metric.rpartition("/")[0]
            for layer, size in enumerate(root_mean_square(difference.relative, keep=1)):
                if np.isfinite(size):
                    sizes.setdefault((stack, layer), []).append(float(size))
        layers = [
            (stack, layer, float(root_mean_square(np.array(of_layer))))
            for (stack, layer), of_layer in sizes.items()
        ]
        return sorted(layers, key=lambda entry: -entry[2])


def compare(
    a: GeometryHistory,
    b: GeometryHistory,
    metrics: Iterable[str] | None = None,
    step: int | None = None,
) -> Comparison:
    """Compare two runs: align them by step, and find where they differ most.

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
    for name, run in (("a", a), ("b", b)):
        check_type(name, run, GeometryHistory, "a GeometryHistory, as `load_history` returns it,")
    stacks = matched_stacks(a, b)
    alignment = align(a.steps, b.steps)
    last = len(alignment.a) - 1
    if step is not None:
        check_type("step", step, Real, "a number of optimizer steps")
        last = int(np.abs(a.steps[alignment.a] - step).argmin())
    window = Alignment(alignment.a[: last + 1], alignment.b[: last + 1], "")
    names = None if metrics is None else stored_names(metrics, {**b.specs, **a.specs})
    both, differences = [], []
    changed = _changed_specs(a, b)
    for series in metric_series(a):
        other = find_series(b, stacks[series.stack], series.name)
        if (
            other is None
            or other.values.shape[1:] != series.values.shape[1:]
            or series.name.partition(".")[0] in changed
        ):
            continue
        both.append(series.key)
        if names is None or series.name in names:
            first, second = series.values[window.a], other.values[window.b]
            differences.append(
                Difference(series.key, series.spec, first[-1], second[-1], _moved(first), _moved(second))
            )
    if not differences:
        requested = "No metric" if names is None else f"None of {', '.join(names)}"
        both_have = f"Both have: {', '.join(both) or 'nothing'}."
        raise RunError(f"{requested} has values in both runs. {' '.join([both_have, *changed.values()])}")
    steps = int(a.steps[window.a[-1]]), int(b.steps[window.b[-1]])
    return Comparison(
        alignment, steps, tuple(differences), tuple(subspace_distances(a, b, stacks)), _probe(a, b),
        (*_notes(a, b, steps, step), *changed.values()),
    )  # fmt: skip


def _changed_specs(a: GeometryHistory, b: GeometryHistory) -> dict[str, str]:
    """Metrics of one name by which the runs mean different numbers, each with a note."""
    return {
        name: f"Not compared: {name}, whose {', '.join(fields)} differs between A and B."
        for name in a.specs
        if name in b.specs and (fields := differing_fields(a.specs[name], b.specs[name]))
    }


def _moved(values: Array) -> Array:
    """Highest minus lowest over samples, NaN where there is no value."""
    defined = np.isfinite(values)
    low = np.where(defined, values, np.inf).min(axis=0)
    high = np.where(defined, values, -np.inf).max(axis=0)
    return np.where(defined.any(axis=0), high - np.where(defined.any(axis=0), low, 0), np.nan)


def _probe(a: GeometryHistory, b: GeometryHistory) -> str:
    prints = [str(history.metadata["probe_fingerprint"][-1]) for history in (a, b)]
    if not all(prints):
        return "batches"
    return "same" if prints[0] == prints[1] else "different"


def matched_stacks(a: GeometryHistory, b: GeometryHistory) -> dict[str, str]:
    """The second run's stack for each of the first's."""
    ours, theirs = heads_per_layer(a), heads_per_layer(b)
    if ours == theirs:
        return {stack: stack for stack in ours}
    if len(ours) == 1 and list(ours.values()) == list(theirs.values()):
        return dict(zip(ours, theirs, strict=True))  # the same model, wrapped in another module
    raise RunError(
        f"The runs are of different models, whose layers and heads do not correspond: "
        f"{describe_model(a)} and {describe_model(b)}."
    )


def _notes(
    a: GeometryHistory, b: GeometryHistory, steps: tuple[int, int], requested: int | None
) -> Iterator[str]:
    if requested is not None and steps[0] != requested:
        yield f"Not both runs have a sample at step {requested}; compared at step {steps[0]}, the nearest."
    if requested is None and a.steps[-1] != b.steps[-1]:
        yield f"The runs end at different steps: A at {a.steps[-1]}, B at {b.steps[-1]}."
    models = [history.model.get("class") for history in (a, b)]
    if models[0] != models[1]:
        yield f"The model classes differ ({models[0]}, {models[1]}), but layers and heads match."
    names_a, names_b = ({name for arrays in h.stacks.values() for name in arrays} for h in (a, b))
    for label, only in (("A", names_a - names_b), ("B", names_b - names_a)):
        if only:
            yield f"Only in {label}: {', '.join(sorted(only))}."
