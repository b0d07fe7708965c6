"""The report's first chapter: what is wrong or unusual in a run, where, since when, and what to do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lightning_geo.analysis.findings.diagnosis import diagnose
from lightning_geo.analysis.findings.words import evidence, span
from lightning_geo.analysis.runs import MetricSeries, Run, find_series
from lightning_geo.metrics.reductions import reduce_finite
from lightning_geo.report.charts import lines
from lightning_geo.report.figures import matrix
from lightning_geo.storage.finding import Finding, worst
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import some

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
    since = span(finding)
    if len(history.stacks) > 1:
        since += f", in {finding.stack}"
    series = find_series(history, finding.stack, finding.metric) if finding.metric else None
    return FindingCard(
        finding.severity,
        since,
        finding.message,
        evidence(finding),
        "; ".join(finding.causes),
        " ".join(finding.next),
        _pictures(history, finding, series) if drawn and series is not None else [],
    )


def _pictures(history: GeometryHistory, finding: Finding, series: MetricSeries) -> list[Markup]:
    marked = np.zeros(series.values.shape[1:], bool)
    for place in finding.heads or [(layer,) for layer in finding.layers]:
        marked[place] = True
    mean = reduce_finite(series.values[:, marked], keep=1)
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
