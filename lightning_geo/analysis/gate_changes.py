"""Finds the heads that changed their gate in a run, and when, from the recorded margins. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.gates import GATES, KINDS, gate_labels
from lightning_geo.storage.history import GeometryHistory

__all__ = [
    "LEAD",
    "GateChange",
    "GateDifference",
    "HeadGates",
    "different_gates",
    "head_gates",
    "lasting_changes",
]

#: Lead of the new gate's margin over the old one's below which a change does not count. Of 73 changes of
#: label in 60 steps of fine-tuning the packaged BERT (13 samples), 21 reach it.
LEAD = 0.05


class HeadGates(NamedTuple):
    """The gates of one stack's heads at every sample that measured them.

    Args:
        stack: Stack of layers.
        steps: [sample].
        margins: [sample, layer, head, 8] in the order of ``KINDS``; ``mixed`` has margin 0, which a
            gate has to exceed.
        labels: [sample, layer, head] indices of ``KINDS``; -1 where a head has no gate.
    """

    stack: str
    steps: NDArray[np.int64]
    margins: NDArray[np.float64]
    labels: NDArray[np.int64]

    def counts(self, sample: int) -> dict[str, int]:
        """Number of heads of each gate at a sample; gates without heads are left out."""
        heads = Counter(self.labels[sample][self.labels[sample] >= 0].tolist())
        return {name: heads[label] for label, name in enumerate(KINDS) if heads[label]}

    def margin(self, sample: int, layer: int, head: int) -> float:
        """How far a head is inside its gate; for a mixed head, minus its distance from the nearest."""
        own = self.margins[sample, layer, head, : len(GATES)]
        return float(own.max())


class GateChange(NamedTuple):
    """A head that changed its gate, and kept the new one for more than a sample.

    Args:
        stack: Stack of layers.
        layer: Number of the layer.
        head: Number of the head.
        step: Step of the first sample with the new gate.
        before: The old gate.
        after: The new gate.
        margin: How far the head is inside the new gate at that step; for ``mixed``, how far from the nearest,
            as a negative number.
        last: The same at the last sample of that stay.
        lead: Largest lead of the new gate's margin over the old one's during the stay.
    """

    stack: str
    layer: int
    head: int
    step: int
    before: str
    after: str
    margin: float
    last: float
    lead: float


class GateDifference(NamedTuple):
    """A head whose gate differs between two runs.

    Args:
        stack: Stack of layers, as the first run names it.
        layer: Number of the layer.
        head: Number of the head.
        a: Its gate in the first run.
        b: Its gate in the second run.
        lead: The smaller of the two runs' margin leads (own gate's margin minus the other gate's);
            near 0 the head is at a threshold in one run.
    """

    stack: str
    layer: int
    head: int
    a: str
    b: str
    lead: float


def head_gates(history: GeometryHistory) -> Iterator[HeadGates]:
    """Yield the gates of each stack of a run that measured all margins of the family ``gates``."""
    for stack, arrays in history.stacks.items():
        if any(f"gate.{gate}" not in arrays for gate in GATES):
            continue
        margins = np.stack([arrays[f"gate.{gate}"].astype(np.float64) for gate in GATES], axis=-1)
        labels = gate_labels(margins)
        margins = np.concatenate([margins, np.zeros((*margins.shape[:-1], 1))], axis=-1)
        measured = (labels >= 0).any(axis=(1, 2))
        if measured.any():
            yield HeadGates(stack, history.steps[measured], margins[measured], labels[measured])


def lasting_changes(gates: HeadGates) -> list[GateChange]:
    """Return the changes that last, in the order of their steps.

    A head that fluctuates around a threshold does not change. A change counts if the new gate lasts for at
    least two samples (or up to the last one) and its margin leads the old one's by :data:`LEAD` at least once
    in that time. A change to ``mixed`` is measured in the same way, with margin 0.
    """
    changes = []
    for layer, head in np.ndindex(gates.labels.shape[1:]):
        known = np.flatnonzero(gates.labels[:, layer, head] >= 0)
        changes += list(_of_head(gates, known, layer, head))
    return sorted(changes, key=lambda change: (change.step, change.layer, change.head))


def _of_head(gates: HeadGates, known: NDArray[np.intp], layer: int, head: int) -> Iterator[GateChange]:
    labels, margins = gates.labels[known, layer, head], gates.margins[known, layer, head]
    now = -1
    for start, end in _stays(labels):
        new = int(labels[start])
        if now < 0:
            now = new
        if new == now or (end - start < 2 and end < len(labels)):
            continue
        lead = float((margins[start:end, new] - margins[start:end, now]).max())
        if lead < LEAD:
            continue
        first, last = (gates.margin(int(known[at]), layer, head) for at in (start, end - 1))
        step = int(gates.steps[known[start]])
        yield GateChange(
            gates.stack, layer, head, step, KINDS[now], KINDS[new], first, last, lead
        )  # fmt: skip
        now = new


def _stays(labels: Sequence[int] | NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch of equal labels."""
    start = 0
    for at in range(1, len(labels) + 1):
        if at == len(labels) or labels[at] != labels[start]:
            yield start, at
            start = at


def different_gates(
    a: GeometryHistory, b: GeometryHistory, steps: tuple[int, int]
) -> tuple[int, list[GateDifference]]:
    """Return how many heads have a gate in both runs, and those whose gates differ, clearest first.

    Args:
        a: The first run.
        b: The second, of the same layers and heads.
        steps: Of each: the last sample with gates up to there counts.
    """
    both, differences = 0, []
    others = {gates.stack: gates for gates in head_gates(b)}
    for first in head_gates(a):
        # a model's only stack may have another name
        second = others.get(first.stack) or (next(iter(others.values())) if len(others) == 1 else None)
        if second is None or second.labels.shape[1:] != first.labels.shape[1:]:
            continue
        at = [
            int(np.searchsorted(gates.steps, step, "right")) - 1
            for gates, step in zip((first, second), steps, strict=True)
        ]
        if min(at) < 0:
            continue
        labels = np.stack([first.labels[at[0]], second.labels[at[1]]])
        known = (labels >= 0).all(axis=0)
        both += int(known.sum())
        for layer, head in np.argwhere(known & (labels[0] != labels[1])):
            x, y = labels[:, layer, head]
            margins_a, margins_b = first.margins[at[0], layer, head], second.margins[at[1], layer, head]
            lead = float(min(margins_a[x] - margins_a[y], margins_b[y] - margins_b[x]))
            differences.append(GateDifference(first.stack, int(layer), int(head), KINDS[x], KINDS[y], lead))
    return both, sorted(differences, key=lambda difference: -difference.lead)
