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

    The rules are evaluated by the code that a monitor uses while a run trains. Findings of rules that are not
    checked here, such as a user's own, are taken from the record.

    Args:
        history: The run.
        rules: The rules to check; ``None`` for the built-in rules with their built-in limits, without those
            that the run's monitor silenced.

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
    """Return the monitor's own findings, each in its last state, in the order in which they opened."""
    return latest(finding for i in range(len(history)) for finding in history.record(i).findings)


def _not_silenced(history: GeometryHistory) -> list[Rule]:
    """Return the built-in rules without those that the monitor had silenced.

    A rule was silenced if the run measured one of its metrics, and the last sample was not checked for it.
    """
    last = history.record(-1)
    if not last.looked_for:
        return list(RULES.values())
    measured = {name for arrays in history.stacks.values() for name in arrays}
    return [
        rule
        for name, rule in RULES.items()
        if name in last.looked_for or not measured.intersection(rule.metrics)
    ]
