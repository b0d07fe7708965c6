"""The report's chapter on changes within a run, and on the gates of its heads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lightning_geo.analysis.changes import changes, layer_changes
from lightning_geo.analysis.gate_changes import LEAD, HeadGates, head_gates, lasting_changes
from lightning_geo.analysis.runs import Run
from lightning_geo.metrics.gates import KINDS
from lightning_geo.report.charts import bars
from lightning_geo.report.figures import classes, legend, matrix
from lightning_geo.report.sentences import gate_change_sentence, run_sentences

__all__ = ["RunChanges", "StackGates", "run_changes"]

_GATE_CHANGES = 40  # listed; the others are counted


class StackGates(NamedTuple):
    """The gates of one stack's heads at the first and the last sample.

    Args:
        name: The stack's name; empty where the model has one stack.
        changed: How many heads changed their gate for good.
        heads: How many have one at the last sample.
        pictures: Gates at both samples, and the legend.
        changes: One sentence per change.
        more: How many less clear changes are not listed.
        lead: The margin's lead from which on a change counts.
    """

    name: str
    changed: int
    heads: int
    pictures: list[Markup]
    changes: list[str]
    more: int
    lead: float


class RunChanges(NamedTuple):
    """Changes within one run.

    Args:
        name: The run's name.
        sentences: Its changes, the most important first.
        pictures: How much each layer changed, and the drift at the end.
        gates: One per stack that measured gates.
    """

    name: str
    sentences: list[str]
    pictures: list[Markup]
    gates: list[StackGates]


def run_changes(run: Run) -> RunChanges:
    """Return the chapter's contents for one run."""
    all_changes = changes(run.history)
    several = len(run.history.stacks) > 1
    pictures = [
        bars(sizes, f"Change of each layer{f' of {stack}' if several else ''} (1 = average)")
        for stack, sizes in layer_changes(all_changes)
    ]
    drifts = [change.series for change in all_changes if change.series.name == "drift.output"]
    for drift in drifts[:2]:
        highest = float(np.nanmax(drift.values)) or 1.0
        pictures.append(matrix(drift.values[-1], f"{drift.key} at the end", 0.0, highest))
    return RunChanges(
        run.name,
        [sentence.text for sentence in run_sentences(run.history)],
        pictures,
        [_stack_gates(gates, several) for gates in head_gates(run.history)],
    )


def _stack_gates(gates: HeadGates, several: bool) -> StackGates:
    lasting = lasting_changes(gates)
    first, last = gates.counts(0), gates.counts(-1)
    names = [f"{name}: {first.get(name, 0)}, then {last.get(name, 0)}" for name in KINDS]
    changed = np.zeros(gates.labels.shape[1:], bool)
    for change in lasting:
        changed[change.layer, change.head] = True
    pictures = [
        classes(gates.labels[0], f"step {gates.steps[0]}"),
        classes(gates.labels[-1], f"step {gates.steps[-1]}", changed),
        legend(names, "heads at the first and last sample"),
    ]
    # a list that is too long keeps the clearest changes, still by step
    clearest = sorted(lasting, key=lambda change: -change.lead)[:_GATE_CHANGES]
    return StackGates(
        gates.stack if several else "",
        int(changed.sum()),
        int((gates.labels[-1] >= 0).sum()),
        pictures,
        [gate_change_sentence(change) for change in lasting if change in clearest],
        len(lasting) - len(clearest),
        LEAD,
    )
