"""The report's sentences, made from the numbers of :mod:`lightning_geo.analysis`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lightning_geo.analysis.changes import (
    FOCUSED,
    TWIN,
    Change,
    changes,
    head_counts,
    layer_changes,
    rotation_speed,
)
from lightning_geo.analysis.comparison import Comparison
from lightning_geo.analysis.gate_changes import GateChange, head_gates, lasting_changes
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.metrics.spec import ROLES
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import apart

__all__ = [
    "Sentence",
    "comparison_sentences",
    "gate_change_sentence",
    "margin",
    "run_sentences",
    "sentence",
]

_SENTENCES = 4  # metrics with a sentence each


class Sentence(NamedTuple):
    """One sentence.

    Args:
        text: The sentence, with its numbers.
        key: The metric it describes; empty if it describes several.
    """

    text: str
    key: str = ""


# -- one run


def run_sentences(history: GeometryHistory) -> list[Sentence]:
    """Return sentences about a run, the most important first."""
    if len(history) == 1:
        return [Sentence(f"Only one sample, at step {history.steps[0]}: there is nothing to compare yet.")]
    all_changes = changes(history)
    return [
        *_layers(all_changes),
        *_drift(all_changes),
        *_metrics(all_changes),
        *_heads(history),
        *_gates(history),
        *_settled(history),
    ]


def _layers(all_changes: Sequence[Change]) -> Iterator[Sentence]:
    several = len({change.series.stack for change in all_changes}) > 1
    for stack, sizes in layer_changes(all_changes):
        if np.isfinite(sizes).sum() < 2:
            continue
        order = np.argsort(-np.nan_to_num(sizes, nan=-1))
        most, second, least = order[0], order[1], [i for i in order if np.isfinite(sizes[i])][-1]
        where = f" of {stack}" if several else ""
        followed = "" if second == least else f", followed by layer {second} ({sizes[second]:.2f}×)"
        yield Sentence(
            f"Layer {most}{where} changed most: {sizes[most]:.2f}× the average layer{followed}. "
            f"Layer {least} changed least ({sizes[least]:.2f}×)."
        )


def _drift(all_changes: Sequence[Change]) -> Iterator[Sentence]:
    drifts = [change for change in all_changes if change.series.spec.name == "drift"]
    for stack in dict.fromkeys(change.series.stack for change in drifts):
        of_stack = sorted((c for c in drifts if c.series.stack == stack), key=lambda c: -c.last)
        far, near = of_stack[0], of_stack[-1]
        where = f" of {stack}" if len({change.series.stack for change in drifts}) > 1 else ""
        least = f" {_role(near).capitalize()} subspaces rotated least ({near.last:.2f})."
        yield Sentence(
            f"The {_role(far)} subspaces{where} rotated most: by {far.last:.2f} on average (0 = as at the "
            f"start, 1 = orthogonal) and by {far.most_change:.2f} in {_place(far.most)}, half of it by step "
            f"{far.half}.{'' if far is near else least}",
            far.series.key if far.series.name.rpartition(".")[2] in ROLES else "",
        )


def _role(change: Change) -> str:
    role = change.series.name.rpartition(".")[2]
    return "head output" if role == "output" else role


def _metrics(all_changes: Sequence[Change]) -> Iterator[Sentence]:
    families: set[str] = set()
    for change in all_changes:
        spec = change.series.spec
        if compares_samples(change.series.name) or spec.family in families or len(families) == _SENTENCES:
            continue
        if not change.size > 0:
            continue
        families.add(spec.family)
        yield Sentence(f"{sentence(change)} {spec.meaning}", change.series.key)


def sentence(change: Change) -> str:
    """Return the change of a metric as one sentence."""
    spec = change.series.spec
    unit = "" if spec.unit == "1" else f" {spec.unit}"
    verb = "rose" if change.last > change.first else "fell" if change.last < change.first else "went"
    share = (
        f" ({100 * (change.last / change.first - 1):+.0f} %)".replace("-", "−") if change.first > 0 else ""
    )
    first, last = apart(change.first, change.last)
    start, end = apart(*change.most_ends)
    what = "in its maximum" if spec.summary == "max" else "on average"
    return (
        f"{change.series.key} {verb} from {first} to {last}{unit}{share} "
        f"{what}, most in {_place(change.most)} ({start} to {end}); half of the "
        f"change had happened by step {change.half}."
    )


def _place(most: tuple[int, int | None]) -> str:
    return f"layer {most[0]}" if most[1] is None else f"layer {most[0]} head {most[1]}"


def _heads(history: GeometryHistory) -> Iterator[Sentence]:
    for count in head_counts(history):
        where = f" of {count.series.stack}" if len(history.stacks) > 1 else ""
        if count.series.name == "redundancy":
            kind = f"with a near-duplicate in the same layer (redundancy above {TWIN})"
        else:
            kind = f"that attend to essentially one token (normalized entropy below {FOCUSED})"
        yield Sentence(
            f"Heads{where} {kind}: {count.last} of {count.heads} at the end, {count.first} at the start.",
            count.series.key,
        )


def _gates(history: GeometryHistory) -> Iterator[Sentence]:
    for gates in head_gates(history):
        if len(gates.steps) < 2:
            continue
        lasting = lasting_changes(gates)
        where = f" of {gates.stack}" if len(history.stacks) > 1 else ""
        heads = len({(change.layer, change.head) for change in lasting})
        ways = Counter((change.before, change.after) for change in lasting).most_common(3)
        most = "; most often " + ", ".join(f"{a} → {b} ({count})" for (a, b), count in ways) if ways else ""
        total = int((gates.labels[-1] >= 0).sum())
        yield Sentence(f"Heads{where} that changed their gate for good: {heads} of {total}{most}.", "gate")


def _settled(history: GeometryHistory) -> Iterator[Sentence]:
    speed = rotation_speed(history)
    if speed is None:
        return
    if speed.last < 0.5 * speed.fastest:
        text = f"are settling: they rotated by {speed.last:.3f} between the last two full samples, down from "
    else:
        text = f"are still rotating: by {speed.last:.3f} between the last two full samples, with "
    yield Sentence(
        f"The subspaces {text}a peak of {speed.fastest:.3f} before step {speed.fastest_step}.", speed.key
    )


def gate_change_sentence(change: GateChange) -> str:
    """Return which head became which gate, and when."""
    return (
        f"layer {change.layer} head {change.head}: {change.before} → {change.after} at step {change.step} "
        f"(margin {margin(change.margin)}, later {margin(change.last)})"
    )


def margin(value: float) -> str:
    """Return a gate's margin as text.

    Example:
        >>> margin(-0.125)
        '−0.12'
    """
    return f"{value:.2f}".replace("-", "−")


# -- two runs


def comparison_sentences(comparison: Comparison) -> Iterator[str]:
    """Yield where two runs differ most, and how they were measured and aligned."""
    layers = comparison.by_layer()
    if layers:
        (stack, most, largest), (_, least, smallest) = layers[0], layers[-1]
        where = f" of {stack}" if len({s for s, _, _ in layers}) > 1 else ""
        yield (
            f"Layer {most}{where} differs most ({largest:.2f}× what the metrics moved during training), "
            f"layer {least} least ({smallest:.2f}×)."
        )
    for role in comparison.subspaces[-4:]:
        if np.isfinite(role.distance).any() and role.steps[0] > 0:
            layer, head = np.unravel_index(int(np.nanargmax(role.distance)), role.distance.shape)
            yield (
                f"The {role.role} subspaces differ by {np.nanmean(role.distance):.2f} on average (0 = "
                f"identical, 1 = orthogonal), most in layer {layer} head {head} "
                f"({np.nanmax(role.distance):.2f})."
            )
    yield {
        "same": "Both runs were measured on the same inputs.",
        "different": "The runs were measured on different inputs; differences may be theirs.",
        "batches": "A run was measured on training batches; differences include their noise.",
    }[comparison.probe]
    at = " and ".join(str(step) for step in dict.fromkeys(comparison.steps))
    yield f"Aligned by step ({comparison.alignment.how}) and compared at step {at}."
    yield from comparison.notes
