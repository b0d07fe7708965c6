"""The report's first chapter: what is wrong or unusual in a run, where, since when, and what to do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lightning_geo.analysis.findings.diagnosis import diagnose
from lightning_geo.analysis.runs import MetricSeries, Run, find_series
from lightning_geo.report.figures import lines, matrix
from lightning_geo.storage.finding import Finding, worst
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import number, some

__all__ = ["FindingCard", "RunFindings", "run_findings"]

_PICTURES = 6  # findings with pictures


class FindingCard(NamedTuple):
    """One finding as the page shows it.

    Args:
        severity: ``note``, ``warning`` or ``critical``.
        span: Since when, and until when.
        message: What happened.
        evidence: The value beside the usual ones; empty without a metric.
        causes: Usual causes.
        next: What to try.
        pictures: The metric over the run, and its map with the cells marked.
    """

    severity: str
    span: str
    message: str
    evidence: str
    causes: str
    next: str
    pictures: list[Markup]


class RunFindings(NamedTuple):
    """The findings of one run.

    Args:
        name: The run's name.
        verdict: All in one line.
        level: The worst severity that is open; ``well`` for none.
        cards: One per finding.
        unchecked: Which rules could not be checked, and why; empty for none.
    """

    name: str
    verdict: str
    level: str
    cards: list[FindingCard]
    unchecked: str


def run_findings(run: Run) -> RunFindings:
    """Return what the chapter shows of one run."""
    diagnosis = diagnose(run.history)
    count = len(diagnosis.unchecked)
    return RunFindings(
        run.name,
        diagnosis.verdict,
        worst(diagnosis.findings) or "well",
        [_card(run.history, f, drawn=i < _PICTURES) for i, f in enumerate(diagnosis.findings)],
        f"{count} rules were not checked, since the run lacks their metrics: {some(diagnosis.unchecked)}."
        if count
        else "",
    )


def _card(history: GeometryHistory, finding: Finding, *, drawn: bool) -> FindingCard:
    span = f"since step {finding.since_step}"
    if finding.until_step is not None:
        span = f"from step {finding.since_step} to {finding.until_step}, ended"
    if len(history.stacks) > 1:
        span += f", in {finding.stack}"
    low, high = (number(end, digits=3) for end in finding.usual)
    usual = low if low == high else f"{low} to {high}"
    series = find_series(history, finding.stack, finding.metric) if finding.metric else None
    return FindingCard(
        finding.severity,
        span,
        finding.message,
        f"{finding.metric} {number(finding.value, digits=3)}, usual {usual}" if finding.metric else "",
        "; ".join(finding.causes),
        " ".join(finding.next),
        _pictures(history, finding, series) if drawn and series is not None else [],
    )


def _pictures(history: GeometryHistory, finding: Finding, series: MetricSeries) -> list[Markup]:
    marked = np.zeros(series.values.shape[1:], bool)
    for place in finding.heads or [(layer,) for layer in finding.layers]:
        marked[place] = True
    cells = series.values[:, marked]
    defined = np.isfinite(cells)
    total = np.where(defined, cells, 0).sum(axis=1)
    mean = np.where(defined.any(axis=1), total / np.maximum(defined.sum(axis=1), 1), np.nan)
    where = "marked heads" if finding.heads else "marked layers"
    course = lines([(where, history.steps, mean)], f"{series.key}, mean of the {where}")
    end = history.steps[-1] if finding.until_step is None else finding.until_step
    at = int(np.searchsorted(history.steps, end, side="right")) - 1
    if finding.until_step is not None:  # the last sample that showed it
        at = max(at - 1, 0)
    known = series.values[np.isfinite(series.values)]
    low, high = (float(end) for end in np.percentile(known, [2, 98])) if len(known) else (0.0, 1.0)
    picture = matrix(
        series.values[at], f"{series.key} at step {history.steps[at]}", low, max(high, low + 1e-12),
        marked=marked,
    )  # fmt: skip
    return [course, picture]
