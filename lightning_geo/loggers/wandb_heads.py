"""The table of heads that a W&B run gets at its end: a row for each head, to sort and filter by."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from lightning_geo.loggers.tags import key_values
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.record import GeometryRecord

__all__ = ["heads_table"]


def heads_table(
    record: GeometryRecord, findings: Iterable[Finding] = (), measured: Collection[str] | None = None
) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of the heads' key metrics at a sample, and of the findings that name them.

    Args:
        record: The run's last sample.
        findings: Of the run.
        measured: Stored names that the run measures; ``None`` where that is not known.

    Returns:
        Names of columns, and a row of values for each head that has any; None where one is missing. No rows
        where no key metric is one of heads.

    Example:
        >>> heads_table(GeometryRecord({"encoder": {"entropy": np.array([[1.0, 2.0]])}}))
        (['layer', 'head', 'entropy', 'findings'], [[0, 0, 1.0, ''], [0, 1, 2.0, '']])
    """
    of_heads = [item for item in key_values(record, measured) if item.values.ndim == 2]
    metrics = list(dict.fromkeys(item.name for item in of_heads))
    several = len(record.stacks) > 1
    rules = _rules(findings)
    rows = []
    for stack in dict.fromkeys(item.stack for item in of_heads):
        arrays = {item.name: item.values for item in of_heads if item.stack == stack}
        for layer, head in np.ndindex(next(iter(arrays.values())).shape):
            values = [_number(arrays[name][layer, head]) if name in arrays else None for name in metrics]
            names = sorted({*rules.get((stack, layer, head), ()), *rules.get((stack, layer, None), ())})
            if names or any(value is not None for value in values):  # else the layer has no such head
                rows.append([*[stack] * several, layer, head, *values, ", ".join(names)])
    return [*["stack"] * several, "layer", "head", *metrics, "findings"], rows


def _rules(findings: Iterable[Finding]) -> dict[tuple[str, int, int | None], list[str]]:
    """Names of the rules of open findings by stack, layer and head; head None for all of a layer."""
    rules: dict[tuple[str, int, int | None], list[str]] = {}
    for finding in findings:
        if finding.until_step is None:
            of_layers: list[tuple[int, int | None]] = [(layer, None) for layer in finding.layers]
            for layer, head in finding.heads or of_layers:
                rules.setdefault((finding.stack, layer, head), []).append(finding.rule)
    return rules


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
