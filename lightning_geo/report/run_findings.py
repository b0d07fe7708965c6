"""The report's first chapter: the findings of a run, where, since when, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lightning_geo.analysis.findings.words import evidence, span
from lightning_geo.analysis.runs import MetricSeries, Run, find_series
from lightning_geo.metrics.reductions import reduce_finite
from lightning_geo.report.charts import lines
from lightning_geo.report.figures import matrix
from lightning_geo.storage.diagnosis import Diagnosis
from lightning_geo.storage.finding import SEVERITIES, Finding, worst
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import some

__all__ = ["FindingCard", "RunFindings", "run_findings"]

_SHOWN = 3  # findings that are not folded, of all runs
_PICTURES = 6  # findings with pictures, of each run


class FindingCard(NamedTuple):
    """One finding as the page shows it.

    Args:
        label: Its mark on the curve of the loss.
        severity: ``note``, ``warning`` or ``critical``.
        span: Since when, and until when.
        message: The finding in one sentence.
        evidence: The value beside the usual ones; empty without a metric.
        causes: Usual causes.
        next: Steps to try.
        pictures: The metric over the run, and its map with the cells marked.
    """

    label: str
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
        cards: Those at the top of the page.
        folded: All others.
        unchecked: Which rules could not be checked, and why; empty for none.
    """

    name: str
    verdict: str
    level: str
    cards: list[FindingCard]
    folded: list[FindingCard]
    unchecked: str


def run_findings(runs: Sequence[Run], diagnoses: Sequence[Diagnosis]) -> list[RunFindings]:
    """Return the chapter's contents for each run.

    Args:
        runs: All runs of the report.
        diagnoses: One for each run.
    """
    every = [(place, finding) for place, diagnosis in enumerate(diagnoses) for finding in diagnosis]
    # the sort is stable: of equal severity the first run's come first
    worst_first = sorted(every, key=lambda entry: (entry[1].until_step is not None, -_severity(entry[1])))
    shown = {id(finding) for _, finding in worst_first[:_SHOWN]}
    return [
        _of_run(run, diagnosis, shown, _letter(place) if len(runs) > 1 else "")
        for place, (run, diagnosis) in enumerate(zip(runs, diagnoses, strict=True))
    ]


def _severity(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"{place + 1}."


def _of_run(run: Run, diagnosis: Diagnosis, shown: set[int], letter: str) -> RunFindings:
    cards = [
        (_card(run.history, finding, f"{letter}{place + 1}", drawn=place < _PICTURES), id(finding) in shown)
        for place, finding in enumerate(diagnosis)
    ]
    count = len(diagnosis.unchecked)
    return RunFindings(
        run.name,
        diagnosis.verdict,
        worst(diagnosis.findings) or "well",
        [card for card, first in cards if first],
        [card for card, first in cards if not first],
        f"{count} rules were not checked, since the run lacks their metrics: {some(diagnosis.unchecked)}."
        if count
        else "",
    )


def _card(history: GeometryHistory, finding: Finding, label: str, *, drawn: bool) -> FindingCard:
    since = span(finding)
    if len(history.stacks) > 1:
        since += f", in {finding.stack}"
    series = find_series(history, finding.stack, finding.metric) if finding.metric else None
    return FindingCard(
        label,
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
