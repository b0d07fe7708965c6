"""The words for a run's findings: the sentence of each, and which layers and heads."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.findings.evaluation import Shown
from lightning_geo.analysis.findings.rule import Rule
from lightning_geo.storage.finding import Finding
from lightning_geo.utils.formatting import number, some

#: A word for several and for one in a message: ``[attend|attends]``.
_CHOICE = re.compile(r"\[([^|\]]*)\|([^|\]]*)\]")

__all__ = ["described", "evidence", "named_layers", "span", "where"]


def described(rule: Rule, stack: str, step: int, shown: Shown) -> Finding:
    """Turn a rule that a sample shows into a finding.

    Args:
        rule: The rule.
        stack: Stack of layers.
        step: First sampled step that showed it.
        shown: Layers and heads, with their values.
    """
    cells, layers = shown.cells, np.flatnonzero(shown.cells.reshape(len(shown.cells), -1).any(axis=1))
    value = _median(shown.values[cells])
    usual = _median(shown.low[cells]), _median(shown.high[cells])
    alone = usual[0] == usual[1] or not np.isfinite(usual[1])
    between = number(usual[0], digits=3) if alone else " to ".join(number(end, digits=3) for end in usual)
    one = cells.sum() == 1
    message = _CHOICE.sub(lambda choice: choice[2 if one else 1], rule.message).format(
        where=where(cells, np.isfinite(shown.values)),
        value=number(value, digits=3),
        usual=between,
        metric=shown.metric,
    )
    if shown.others:
        message = f"{message.rstrip('.')}; so did {some(shown.others)}."
    share = rule.critical_layers
    defined = np.isfinite(shown.values).reshape(len(cells), -1).any(axis=1).sum()
    critical = share is not None and len(layers) >= share * defined
    heads = tuple((int(layer), int(head)) for layer, head in np.argwhere(cells)) if cells.ndim > 1 else ()
    return Finding(
        rule.name, "critical" if critical else rule.severity, shown.metric, stack, tuple(layers.tolist()),
        heads, step, value, usual, message[:1].upper() + message[1:], rule.causes, rule.next,
    )  # fmt: skip


def span(finding: Finding) -> str:
    """Return as text since when, and until when, a finding holds.

    Example:
        >>> low = Finding("r", "note", "entropy", "encoder", (1,), (), 5, 0.5, (0.6, 1.0), "m")
        >>> span(low), span(low.closed(20))
        ('since step 5', 'from step 5 to 20, ended')
    """
    if finding.until_step is None:
        return f"since step {finding.since_step}"
    return f"from step {finding.since_step} to {finding.until_step}, ended"


def evidence(finding: Finding) -> str:
    """Return a finding's value beside the usual ones; empty without a metric.

    Example:
        >>> evidence(Finding("r", "note", "entropy", "encoder", (1,), (), 5, 0.5, (0.6, 1.0), "m"))
        'entropy 0.500, usual 0.600 to 1.00'
    """
    low, high = (number(end, digits=3) for end in finding.usual)
    usual = low if low == high else f"{low} to {high}"
    return f"{finding.metric} {number(finding.value, digits=3)}, usual {usual}" if finding.metric else ""


def _median(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")


def where(cells: NDArray[np.bool_], defined: NDArray[np.bool_]) -> str:
    """Name the layers, and count the heads, of a finding.

    Args:
        cells: [layer] or [layer, head], whether the cell shows it.
        defined: The same shape, whether the cell has a value.

    Example:
        >>> cells = np.array([[False, False], [True, True], [True, False]])
        >>> where(cells, np.ones_like(cells)), where(cells.any(axis=1), np.ones(3, bool))
        ('3 of 4 heads in layers 1 and 2', 'layers 1 and 2')
    """
    layers = np.flatnonzero(cells.reshape(len(cells), -1).any(axis=1))
    name = named_layers(layers.tolist())
    if cells.ndim == 1:
        return name
    hits, heads = int(cells.sum()), int(defined[layers].sum())
    if hits == 1:
        return f"head {int(np.flatnonzero(cells[layers[0]])[0])} of {name}"
    return f"{hits} of {heads} heads in {name}"


def named_layers(layers: list[int]) -> str:
    """Return ``layer 3``, ``layers 3 to 5`` or ``layers 0, 3 to 5 and 9``.

    Example:
        >>> named_layers([3]), named_layers([0, 3, 4, 5, 9]), named_layers([0, 2, 3])
        ('layer 3', 'layers 0, 3 to 5 and 9', 'layers 0, 2 and 3')
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    # two neighbours are named, three are a range
    runs = [one for run in runs for one in ([run] if len(run) > 2 else [[layer] for layer in run])]
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    if len(parts) > 8:
        parts = [*parts[:7], f"{sum(map(len, runs[7:]))} more"]
    text = ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"layer{'s' if len(layers) > 1 else ''} {text}"
