"""Diagnoses a run from its records: the verdict and the findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.detector import Detector
from lightning_geo.analysis.findings.rule import Rule
from lightning_geo.storage.finding import Finding, ranked, verdict, worst
from lightning_geo.storage.history import GeometryHistory

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong or unusual in a run.

    Args:
        findings: Open ones before ended ones, the most severe first, then the earliest.
        unchecked: Rules that could not be checked, with the metrics that they need one of.
        samples: Samples of the run.
        last_step: Step of the last one.
    """

    findings: tuple[Finding, ...]
    unchecked: dict[str, tuple[str, ...]]
    samples: int
    last_step: int

    @property
    def verdict(self) -> str:
        """The findings in one line."""
        return verdict(self.findings)

    @property
    def critical(self) -> bool:
        """Whether a critical finding is open at the run's last sample."""
        return worst(self.findings) == "critical"

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict and the findings as JSON-serialisable values."""
        return {
            "verdict": self.verdict,
            "findings": [finding.as_dict() for finding in self.findings],
            "unchecked": {name: list(metrics) for name, metrics in self.unchecked.items()},
        }


def diagnose(history: GeometryHistory, rules: Iterable[Rule] = tuple(RULES.values())) -> Diagnosis:
    """Find what is wrong or unusual in a run.

    The rules are those by which a monitor warns while a run trains, and so are their findings. Those of
    rules that are not among them, a user's own, are taken from the record.

    Args:
        history: The run.
        rules: What to look for.

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
    rules = list(rules)
    detector = Detector(rules)
    for sample in range(len(history)):
        detector.update(history.record(sample))
    names = {rule.name for rule in rules}
    own = [finding for finding in history.findings if finding.rule not in names]
    return Diagnosis(
        tuple(ranked([*detector.findings, *own])),
        detector.unchecked,
        len(history),
        int(history.steps[-1]),
    )
