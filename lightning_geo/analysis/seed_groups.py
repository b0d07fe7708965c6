"""Compares groups of runs that differ in their seed, to tell differences from noise. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from lightning_geo.analysis.runs import describe_model, heads_per_layer, metric_series, stored_names
from lightning_geo.metrics.foreign_specs import differing_fields
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.errors import RunError

__all__ = ["GroupComparison", "GroupRow", "compare_groups"]


_SPLITS = 200  # regroupings at most


class GroupRow(NamedTuple):
    """One number of two groups of runs.

    Args:
        metric: Name, with the stack before it where there are several.
        layer: Number of the layer.
        head: Number of the head; ``None`` where the metric has none.
        mean_a: Mean over the first group.
        spread_a: Standard deviation in the first group; NaN where it has one run.
        mean_b: Mean over the second group.
        spread_b: Standard deviation in the second group.
        difference: ``mean_b − mean_a``.
        statistic: The difference in units of its moderated standard error, see :func:`compare_groups`.
        chance: How often a difference this large occurs anywhere when the runs are regrouped.
    """

    metric: str
    layer: int
    head: int | None
    mean_a: float
    spread_a: float
    mean_b: float
    spread_b: float
    difference: float
    statistic: float
    chance: float


@dataclass(frozen=True)
class GroupComparison:
    """The result of :func:`compare_groups`.

    Args:
        step: Step at which all runs were compared.
        sizes: Runs in each group.
        rows: Every cell of every metric, the clearest difference first.
        splits: Number of groupings that chance was estimated from, the true one included.
        notes: Caveats for the reader, one sentence each.
    """

    step: int
    sizes: tuple[int, int]
    rows: tuple[GroupRow, ...]
    splits: int
    notes: tuple[str, ...]


def compare_groups(
    a: Sequence[GeometryHistory],
    b: Sequence[GeometryHistory],
    metrics: Iterable[str] | None = None,
    step: int | None = None,
) -> GroupComparison:
    r"""Compare two groups of runs, cell by cell.

    With pooled variance :math:`s^2` a cell's standard error is :math:`s\sqrt{1/n_a + 1/n_b}`. Two or three
    runs estimate it badly, so that it is tiny for some of thousands of cells; the metric's median error is
    therefore added to each. Regrouping the runs, in all ways or in 200 of them, shows how large the largest
    of all cells gets by chance, so that ``chance`` is adjusted for the number of cells. It is at least one
    over the number of ways: 1/3 for two runs against two, 1/10 for three against three.

    Args:
        a: Runs of the first configuration.
        b: Runs of the second; empty for the mean and spread of the first alone.
        metrics: Families, metrics or stored names; ``None`` for all that every run has.
        step: Compare at the common step nearest to this one; ``None`` for the last.

    Raises:
        RunError: If the runs are of different models, share no step or metric, or no group has two runs.

    Source: Moderated statistic, Tusher et al. 2001 (SAM); adjusted chance, Westfall & Young 1993 (maxT).
    """
    runs = [*a, *b]
    if max(len(a), len(b)) < 2:
        raise RunError("At least one group needs two runs or more: a single run has no spread.")
    layouts = [list(heads_per_layer(run).values()) for run in runs]
    if other := next((run for run, heads in zip(runs, layouts, strict=True) if heads != layouts[0]), None):
        raise RunError(
            f"The runs are of different models: {describe_model(runs[0])} and {describe_model(other)}."
        )
    common = reduce(np.intersect1d, [run.steps for run in runs])
    if not len(common):
        raise RunError("The runs have no step in common, so they cannot be compared as groups.")
    at = int(common[-1] if step is None else common[np.abs(common - step).argmin()])
    specs, changed = _specs(runs)
    keys, cells = _cells(runs, at, None if metrics is None else stored_names(metrics, specs), changed)
    statistics, splits = _moderated(keys, cells, len(a))
    first, second = cells[: len(a)], cells[len(a) :]
    rows = []
    largest = np.array([np.nanmax(np.abs(split), initial=0) for split in splits])
    for index, (metric, layer, head) in enumerate(keys):
        values_a, values_b = first[:, index], second[:, index]
        mean_b = float(values_b.mean()) if len(values_b) else math.nan
        size = abs(statistics[index])
        chance = (1 + int((largest >= size - 1e-9).sum())) / (1 + len(splits))
        rows.append(
            GroupRow(
                metric, layer, head, float(values_a.mean()), _spread(values_a), mean_b, _spread(values_b),
                mean_b - float(values_a.mean()), float(statistics[index]), chance if len(b) else math.nan,
            )
        )  # fmt: skip
    rows.sort(key=lambda row: -abs(row.statistic) if math.isfinite(row.statistic) else 0.0)
    notes = [f"Not compared: {name}, by which the runs mean different numbers." for name in sorted(changed)]
    notes = [*_notes(runs, at, step), *notes]
    return GroupComparison(at, (len(a), len(b)), tuple(rows), len(splits) + 1, tuple(notes))


def _specs(runs: Sequence[GeometryHistory]) -> tuple[dict[str, MetricSpec], set[str]]:
    """Specs of metrics that are not built in, the first run's, and names by which runs mean other numbers."""
    specs = {name: spec for run in runs[::-1] for name, spec in run.specs.items()}
    return specs, {
        name
        for name, spec in specs.items()
        if any(name in run.specs and differing_fields(spec, run.specs[name]) for run in runs)
    }


def _cells(
    runs: Sequence[GeometryHistory], step: int, names: tuple[str, ...] | None, changed: Collection[str]
) -> tuple[list[tuple[str, int, int | None]], Array]:
    """Metric, layer and head of every cell that all runs have a value for, and [run, cell]."""
    by_run: list[dict[tuple[str, int, int | None], float]] = []
    for run in runs:
        sample = int(np.flatnonzero(run.steps == step)[0])
        stacks = {stack: place for place, stack in enumerate(run.stacks)}
        ours = list(runs[0].stacks)
        values = {}
        for series in metric_series(run):
            if (names is not None and series.name not in names) or series.name.partition(".")[0] in changed:
                continue
            key = f"{ours[stacks[series.stack]]}/{series.name}" if len(ours) > 1 else series.name
            now = series.values[sample]
            for cell in zip(*np.nonzero(np.isfinite(now)), strict=True):
                values[key, int(cell[0]), int(cell[1]) if len(cell) > 1 else None] = float(now[cell])
        by_run.append(values)
    keys = [key for key in by_run[0] if all(key in values for values in by_run)]
    if not keys:
        requested = "" if names is None else f" of {', '.join(names)}"
        raise RunError(f"No metric{requested} has values in all runs.")
    return keys, np.array([[values[key] for key in keys] for values in by_run])


def _moderated(
    keys: Sequence[tuple[str, int, int | None]], cells: Array, size: int
) -> tuple[Array, list[Array]]:
    """The statistic of each cell for the true groups, and for the runs regrouped."""
    metrics = np.unique([metric for metric, _, _ in keys], return_inverse=True)[1]
    if size == len(cells):
        return np.full(len(keys), np.nan), []
    everyone = np.arange(len(cells))

    def statistic(members: tuple[int, ...]) -> Array:
        group_a, group_b = cells[list(members)], cells[np.setdiff1d(everyone, members)]
        squares = ((group_a - group_a.mean(0)) ** 2).sum(0) + ((group_b - group_b.mean(0)) ** 2).sum(0)
        error = np.sqrt(squares / (len(cells) - 2) * (1 / len(group_a) + 1 / len(group_b)))
        medians = np.array([np.median(error[metrics == metric]) for metric in range(metrics.max() + 1)])
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = group_b.mean(0) - group_a.mean(0)
            result: Array = np.where(difference == 0, 0.0, difference / (error + medians[metrics]))
        return result

    return statistic(tuple(range(size))), [statistic(members) for members in _splits(len(cells), size)]


def _splits(runs: int, size: int) -> Iterator[tuple[int, ...]]:
    """Other ways to choose the first group; exchanging two groups of equal size does not count."""
    own = tuple(range(size))
    count = math.comb(runs, size)
    if count <= 4 * _SPLITS:
        ways = [way for way in itertools.combinations(range(runs), size) if 2 * size != runs or 0 in way]
    else:
        generator = np.random.default_rng(0)
        drawn = (tuple(sorted(generator.permutation(runs)[:size].tolist())) for _ in range(_SPLITS))
        ways = list(dict.fromkeys(drawn))
    others = [way for way in ways if way != own]
    if len(others) > _SPLITS:
        others = [others[i] for i in np.linspace(0, len(others) - 1, _SPLITS).astype(int)]
    yield from others


def _spread(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _notes(runs: Sequence[GeometryHistory], step: int, requested: int | None) -> Iterator[str]:
    if requested is not None and step != requested:
        yield f"Not all runs have a sample at step {requested}; compared at step {step}, the nearest."
    probes = {str(run.metadata["probe_fingerprint"][-1]) for run in runs}
    if len(probes) > 1:
        yield f"The runs were measured on {len(probes)} different probes: the spread includes that of inputs."
    elif "" in probes:
        yield "The runs were measured on training batches: the spread includes that of inputs."
