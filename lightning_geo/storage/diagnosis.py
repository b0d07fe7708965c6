"""A diagnosis: all findings of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning_geo.storage.finding import Finding, verdict, worst
from lightning_geo.utils.views import view

__all__ = ["Diagnosis"]


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """All findings of a run; iterating over it yields them.

    Args:
        findings: Open ones before ended ones, the most severe first, then the earliest.
        unchecked: Rules that could not be checked, with the metrics that they need one of.
        checked: Whether any rule could be.
        samples: Samples of the run.
        last_step: Step of the last one.
    """

    findings: tuple[Finding, ...]
    unchecked: dict[str, tuple[str, ...]]
    checked: bool
    samples: int
    last_step: int

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __repr__(self) -> str:
        return f"Diagnosis({self.verdict!r}, {len(self.findings)} findings)"

    def _repr_html_(self) -> str:
        return str(view(self, "html"))

    @property
    def verdict(self) -> str:
        """The findings in one line."""
        return verdict(self.findings, checked=self.checked)

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
