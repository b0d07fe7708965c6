"""Diagnoses a run from its records: the verdict and the findings."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.detector import Detector
from lightning_geo.analysis.findings.rule import Rule
from lightning_geo.storage.diagnosis import Diagnosis
from lightning_geo.storage.finding import Finding, latest, ranked
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.arguments import check_type

__all__ = ["diagnose", "recorded_findings"]


def diagnose(history: GeometryHistory, rules: Iterable[Rule] | None = None) -> Diagnosis:
    """Find what is wrong or unusual in a run.

    Findings are made by the code with which a monitor makes them while a run trains. Those of rules that are
    not looked for here, a user's own, are taken from the record.

    Args:
        history: The run.
        rules: What to look for; ``None`` for the built-in rules with their built-in limits, without those
            that the run's monitor was told to silence.

    Returns:
        The verdict, and the findings, the most severe first.

    Example:
        >>> import numpy as np
        >>> from lightning_geo import GeometryHistory, GeometryRecord
        >>> entropy = [np.full((2, 4), value, np.float32) for value in (0.7, 0.01, 0.01)]
        >>> records = [
        ...     GeometryRecord({"encoder": {"normalized_entropy": values}}, step=50 * i)
        ...     for i, values in enumerate(entropy)
        ... ]
        >>> [finding] = diagnose(GeometryHistory(records)).findings
        >>> finding.rule, finding.severity, finding.layers, finding.since_step
        ('entropy_collapse', 'critical', (0, 1), 50)
    """
    check_type("history", history, GeometryHistory, "a GeometryHistory, as `load_history` returns it,")
    check_type("rules", () if rules is None else rules, Iterable, "a list of rules")
    rules = _not_silenced(history) if rules is None else list(rules)
    detector = Detector(rules)
    for sample in range(len(history)):
        detector.update(history.record(sample))
    names = {rule.name for rule in rules}
    own = [finding for finding in recorded_findings(history) if finding.rule not in names]
    return Diagnosis(
        tuple(ranked([*detector.findings, *own])),
        detector.unchecked,
        len(detector.unchecked) < len(rules),
        len(history),
        int(history.steps[-1]),
    )


def recorded_findings(history: GeometryHistory) -> list[Finding]:
    """Return what the monitor found while the run went on, each finding as it was last, by their opening."""
    return latest(finding for i in range(len(history)) for finding in history.record(i).findings)


def _not_silenced(history: GeometryHistory) -> list[Rule]:
    """Return the built-in rules but those that the last sample had the metrics of and was not checked for."""
    last = history.record(-1)
    if not last.looked_for:
        return list(RULES.values())
    measured = {name for arrays in history.stacks.values() for name in arrays}
    return [
        rule
        for name, rule in RULES.items()
        if name in last.looked_for or not measured.intersection(rule.metrics)
    ]
