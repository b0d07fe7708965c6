"""One self-contained HTML file about a run, or about several against the first. No torch, no script."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_geo.analysis.comparison import compare
from lightning_geo.analysis.findings.diagnosis import diagnose
from lightning_geo.analysis.runs import Run
from lightning_geo.report.largest_changes import largest_changes
from lightning_geo.report.metric_cards import metric_cards, metric_table, own_metrics_table
from lightning_geo.report.rendering import render
from lightning_geo.report.run_changes import run_changes
from lightning_geo.report.run_differences import run_differences
from lightning_geo.report.run_findings import run_findings
from lightning_geo.report.run_metadata import run_metadata
from lightning_geo.report.run_outcome import run_outcome

__all__ = ["report"]


def report(runs: Sequence[Run]) -> str:
    """Return an HTML page on the outcome of runs, their changes with time and place, and their differences.

    What counts stands on the first two screens; the rest is folded, and listed beside it.
    The page loads nothing and runs no script; every name that comes from a user is escaped.

    Args:
        runs: One run, or several of the same model, which are compared with the first.

    Raises:
        RunError: If the runs are of different models.
    """
    first, *others = runs
    comparisons = [compare(first.history, run.history) for run in others]
    diagnoses = [diagnose(run.history) for run in runs]
    findings = run_findings(runs, diagnoses)
    return render(
        "report.html.jinja",
        title=_title(runs),
        reference=first.name,
        outcome=run_outcome(runs, diagnoses),
        findings=findings,
        folded=any(run.folded for run in findings),
        changed=[] if others else largest_changes(first),
        differences=run_differences(runs, comparisons),
        changes=[run_changes(run) for run in runs],
        cards=metric_cards(runs),
        metrics=metric_table(first),
        own_metrics=own_metrics_table(first),
        metadata=run_metadata(runs),
    )


def _title(runs: Sequence[Run]) -> str:
    first, *others = [run.name for run in runs]
    if not others:
        return f"Attention geometry: {first}"
    against = others[0] if len(others) == 1 else f"{len(others)} other runs"
    return f"Attention geometry: {first} vs. {against}"
