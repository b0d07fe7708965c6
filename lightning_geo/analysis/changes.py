"""What changed within a run, where and when: sentences with their numbers. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.gate_changes import head_gates, lasting_changes
from lightning_geo.analysis.runs import MetricSeries, metric_series
from lightning_geo.metrics.reductions import reduce_finite, root_mean_square
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.metrics.spec import ROLES
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import number

__all__ = ["Change", "Finding", "change_of", "changes", "findings", "layer_changes"]

_SENTENCES = 4  # metrics that get a sentence of their own
_FOCUSED = 0.05  # normalised entropy of a head that looks at practically one key
_TWIN = 0.95  # similarity at which another head does the same


class Finding(NamedTuple):
    """One sentence.

    Args:
        text: For a person, with its numbers.
        key: Metric that it is about; empty where it is about several.
    """

    text: str
    key: str = ""


class Change(NamedTuple):
    """How one metric changed between a run's first and last sample.

    Args:
        of: The metric.
        first: Model's number at the first sample that has one.
        last: At the last one that has.
        cells: [layer] or [layer, head] last minus first.
        most: Layer and head (``None`` for a metric of layers) that changed most.
        size: Root mean square of ``cells`` in units of the spread that layers and heads had at the start.
        half: First step at which the layers and heads had come half of their way.
    """

    of: MetricSeries
    first: float
    last: float
    cells: NDArray[np.float64]
    most: tuple[int, int | None]
    size: float
    half: int


def change_of(of: MetricSeries, steps: NDArray[np.int64]) -> Change | None:
    """Return how a metric changed, or None where no layer has two samples of it."""
    known = np.flatnonzero(np.isfinite(of.values.reshape(len(of.values), -1)).any(axis=1))
    if len(known) < 2:
        return None
    values, model, steps = of.values[known], of.model()[known], steps[known]
    cells = values[-1] - values[0]
    if not np.isfinite(cells).any():
        return None
    place = np.unravel_index(int(np.nanargmax(np.abs(cells))), cells.shape)
    way = np.nan_to_num(reduce_finite(np.abs(values - values[0]), keep=1))
    spread = float(np.nanstd(values[0]))
    rms = float(root_mean_square(cells))
    return Change(
        of, float(model[0]), float(model[-1]), cells,
        (int(place[0]), int(place[1]) if len(place) > 1 else None),
        rms / spread if spread > 1e-12 else float("nan"),
        int(steps[np.argmax(way >= way[-1] / 2)]),
    )  # fmt: skip


def changes(history: GeometryHistory) -> list[Change]:
    """Return the headline metrics' changes, the largest first; drift leads, for it is nothing but change."""
    found = [
        change
        for of in metric_series(history)
        if of.name in of.spec.headline and (change := change_of(of, history.steps)) is not None
    ]
    return sorted(found, key=lambda c: (not compares_samples(c.of.name), -np.nan_to_num(c.size)))


def layer_changes(found: Sequence[Change]) -> list[tuple[str, NDArray[np.float64]]]:
    """How much each layer changed, by stack, where 1 is what layers changed on average.

    A metric's changes are taken in units of their own root mean square, so that all count alike; a layer's
    number is the root mean square over metrics and heads.
    """
    shares: dict[str, list[NDArray[np.float64]]] = {}
    for change in found:
        unit = root_mean_square(change.cells)
        if unit > 0:
            shares.setdefault(change.of.stack, []).append(root_mean_square(change.cells, keep=1) / unit)
    # [layer, metric]: what is left after the mean over metrics is one number per layer
    return [(stack, root_mean_square(np.stack(layers, axis=1), keep=1)) for stack, layers in shares.items()]


def findings(history: GeometryHistory) -> list[Finding]:
    """Return what a reader should know about a run, most telling first."""
    found = changes(history)
    if len(history) == 1:
        return [Finding(f"There is one sample, at step {history.steps[0]}: nothing can have changed yet.")]
    return [
        *_layers(found),
        *_drift(found),
        *_metrics(found),
        *_heads(history),
        *_gates(history),
        *_settled(history),
    ]


def _layers(found: Sequence[Change]) -> Iterator[Finding]:
    several = len({change.of.stack for change in found}) > 1
    for stack, sizes in layer_changes(found):
        if np.isfinite(sizes).sum() < 2:
            continue
        order = np.argsort(-np.nan_to_num(sizes, nan=-1))
        most, second, least = order[0], order[1], [i for i in order if np.isfinite(sizes[i])][-1]
        where = f" of {stack}" if several else ""
        yield Finding(
            f"Layer {most}{where} changed most: {sizes[most]:.2f} times as much as layers do on average; "
            f"then layer {second} ({sizes[second]:.2f}). Layer {least} changed least ({sizes[least]:.2f})."
        )


def _drift(found: Sequence[Change]) -> Iterator[Finding]:
    drifts = [c for c in found if c.of.spec.name == "drift"]
    for stack in dict.fromkeys(c.of.stack for c in drifts):
        mine = sorted((c for c in drifts if c.of.stack == stack), key=lambda c: -c.last)
        far, near = mine[0], mine[-1]
        role = far.of.name.rpartition(".")[2]
        others = "" if far is near else f"; the {_plural(near)} least ({number(near.last)})"
        yield Finding(
            f"Subspaces turned: those of the {_plural(far)} furthest, by {number(far.last)} on average "
            f"(0 the same as at the start, 1 orthogonal), most in {_place(far.most)} "
            f"({number(float(far.cells[_index(far.most)]))}); half of it by step {far.half}{others}.",
            far.of.key if role in ROLES else "",
        )


def _plural(change: Change) -> str:
    role = change.of.name.rpartition(".")[2]
    return {"query": "queries", "key": "keys", "value": "values", "output": "heads' outputs"}.get(role, role)


def _metrics(found: Sequence[Change]) -> Iterator[Finding]:
    families: set[str] = set()
    for change in found:
        spec = change.of.spec
        if compares_samples(change.of.name) or spec.family in families or len(families) == _SENTENCES:
            continue
        if not change.size > 0:
            continue
        families.add(spec.family)
        yield Finding(f"{sentence(change)} {spec.meaning}", change.of.key)


def sentence(change: Change) -> str:
    """Return what happened to a metric, in one sentence."""
    spec, values = change.of.spec, change.of.values
    unit = "" if spec.unit == "1" else f" {spec.unit}"
    verb = "rose" if change.last > change.first else "fell" if change.last < change.first else "stayed"
    share = (
        f" ({100 * (change.last / change.first - 1):+.0f} %)".replace("-", "−") if change.first > 0 else ""
    )
    place = _index(change.most)
    course = values.reshape(len(values), -1)[:, np.ravel_multi_index(place, values.shape[1:])]
    start, end = course[np.isfinite(course)][[0, -1]]
    what = "its largest value" if spec.summary == "max" else "on average"
    return (
        f"{change.of.key} {verb} from {number(change.first)} to {number(change.last)}{unit}{share} {what}, "
        f"most in {_place(change.most)} ({number(float(start))} to {number(float(end))}); half of the way by "
        f"step {change.half}."
    )


def _heads(history: GeometryHistory) -> Iterator[Finding]:
    for of in metric_series(history):
        counts = []
        for sample in (of.values[0], of.values[-1]):
            if of.name == "normalized_entropy":
                counts.append((int((sample < _FOCUSED).sum()), int(np.isfinite(sample).sum())))
            elif of.name == "redundancy":
                counts.append((int((sample > _TWIN).sum()), int(np.isfinite(sample).sum())))
        if not counts or not counts[1][1] or not (counts[0][0] or counts[1][0]):
            continue
        (before, _), (after, heads) = counts
        where = f" of {of.stack}" if len(history.stacks) > 1 else ""
        if of.name == "redundancy":
            kind = f"with a twin in their layer that does the same (redundancy above {_TWIN})"
        else:
            kind = f"that look at practically a single key (normalised entropy below {_FOCUSED})"
        yield Finding(f"Heads{where} {kind}: {after} of {heads} at the end, {before} at the start.", of.key)


def _gates(history: GeometryHistory) -> Iterator[Finding]:
    for gates in head_gates(history):
        found = lasting_changes(gates)
        if len(gates.steps) < 2:
            continue
        where = f" of {gates.stack}" if len(history.stacks) > 1 else ""
        heads = len({(change.layer, change.head) for change in found})
        ways = Counter((change.before, change.after) for change in found).most_common(3)
        most = "; most often " + ", ".join(f"{a} → {b} ({count})" for (a, b), count in ways) if ways else ""
        total = int((gates.labels[-1] >= 0).sum())
        yield Finding(
            f"Heads{where} that became another kind of gate, lastingly: {heads} of {total}{most}.", "gate"
        )


def _settled(history: GeometryHistory) -> Iterator[Finding]:
    speeds = [of for of in metric_series(history) if of.spec.name == "velocity"]
    if not speeds:
        return
    curves = np.array([of.model() for of in speeds])
    known = np.flatnonzero(np.isfinite(curves).all(axis=0))
    gaps = np.diff(history.steps, prepend=history.steps[0])
    # a last sample soon after another has had less time to turn
    known = known[(gaps[known] >= 0.9 * np.median(gaps[1:])) & (known > 0)] if len(gaps) > 1 else known[:0]
    if len(known) < 3:
        return
    mean = curves[:, known].mean(axis=0)
    peak, last = int(np.argmax(mean)), float(mean[-1])
    steps = history.steps[known]
    verb = "are settling" if last < 0.5 * mean[peak] else "are still turning"
    yield Finding(
        f"The subspaces {verb}: they turned by {number(last)} between the last two full samples, and fastest "
        f"({number(float(mean[peak]))}) before step {steps[peak]}.",
        speeds[0].key if len(speeds) == 1 else "",
    )


def _index(most: tuple[int, int | None]) -> tuple[int, ...]:
    return (most[0],) if most[1] is None else (most[0], most[1])


def _place(most: tuple[int, int | None]) -> str:
    return f"layer {most[0]}" if most[1] is None else f"layer {most[0]} head {most[1]}"
