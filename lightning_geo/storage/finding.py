"""A finding: something wrong or unusual in a run, in one place, since one step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from lightning_geo.utils.errors import DamagedError

__all__ = ["SEVERITIES", "Finding", "Severity", "latest", "ranked", "verdict", "worst"]

Severity = Literal["note", "warning", "critical"]

#: From the least to the most severe.
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or unusual in a run, in one place, since one step.

    Args:
        rule: Name of the rule that found it.
        severity: ``"note"``, ``"warning"`` or ``"critical"``: the worst it has been.
        metric: Stored name of the metric that shows it most.
        stack: Stack of layers.
        layers: Layers that show it, ascending.
        heads: ``(layer, head)`` of the heads that show it; empty for a metric of layers.
        since_step: First sampled step that showed it.
        value: The metric's median over these layers or heads, at the step where it was worst.
        usual: Lowest and highest usual value of the same layers or heads: at the run's first sample, or
            around their trend.
        message: What happened, in one sentence.
        causes: Usual causes, most frequent first.
        next: What to try.
        until_step: First sampled step that no longer showed it; ``None`` while it is open.
    """

    rule: str
    severity: Severity
    metric: str
    stack: str
    layers: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    since_step: int
    value: float
    usual: tuple[float, float]
    message: str
    causes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    until_step: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Rule and stack: a run has one finding of each at a time."""
        return self.rule, self.stack

    def closed(self, step: int) -> Finding:
        """Return the finding, ended at a step."""
        return replace(self, until_step=step)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values; a number that is not finite is None.

        Example:
            >>> high = Finding("r", "note", "entropy", "encoder", (1,), ((1, 0),), 5, 0.5, (0.6, np.inf), "m")
            >>> high.as_dict()["heads"], high.as_dict()["usual"]
            ([[1, 0]], [0.6, None])
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {
            "layers": list(self.layers),
            "heads": [list(head) for head in self.heads],
            "value": _finite(self.value),
            "usual": [_finite(end) for end in self.usual],
            "causes": list(self.causes),
            "next": list(self.next),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """Inverse of :meth:`as_dict`; unknown keys, of a newer version, are left out.

        Raises:
            ValueError: If the values are not those of a finding.
        """
        try:
            low, high = (_number(end) for end in values["usual"])
            until = values.get("until_step")
            severity = values["severity"]
            if severity not in SEVERITIES:
                raise DamagedError(f"severity {severity!r}")
            return cls(
                str(values["rule"]), severity, str(values["metric"]), str(values["stack"]),
                tuple(map(int, values["layers"])),
                tuple((int(layer), int(head)) for layer, head in values["heads"]),
                int(values["since_step"]), _number(values["value"]), (low, high), str(values["message"]),
                tuple(map(str, values.get("causes", ()))), tuple(map(str, values.get("next", ()))),
                None if until is None else int(until),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"not a finding: {type(error).__name__}: {error}") from error


def latest(findings: Iterable[Finding]) -> list[Finding]:
    """Merge what samples said of a run's findings: each as it was last, in the order in which they opened.

    Args:
        findings: Those that each sample opened, updated or ended, by ascending step.

    Example:
        >>> opened = Finding("r", "note", "entropy", "encoder", (1,), (), 5, 0.5, (0.6, 1.0), "m")
        >>> [finding.until_step for finding in latest([opened, opened.closed(20)])]
        [20]
    """
    return list({(*finding.key, finding.since_step): finding for finding in findings}.values())


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings: open before ended, the most severe first, then the earliest."""
    return sorted(
        findings, key=lambda f: (f.until_step is not None, -SEVERITIES.index(f.severity), f.since_step)
    )


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Return the worst severity that is open; ``None`` for none."""
    return max((f.severity for f in findings if f.until_step is None), key=SEVERITIES.index, default=None)


def verdict(findings: Iterable[Finding], *, checked: bool = True) -> str:
    """Say in one line what findings amount to.

    Args:
        findings: Of a run, ended ones included.
        checked: Whether any rule could be checked.

    Example:
        >>> verdict([])
        'Nothing unusual.'
    """
    open_findings = [finding for finding in findings if finding.until_step is None]
    critical = [finding for finding in open_findings if finding.severity == "critical"]
    if critical:
        more = f" {len(open_findings) - 1} more to look at." if len(open_findings) > 1 else ""
        return f"Something is wrong: {critical[0].message}{more}"
    if not open_findings:
        return "Nothing unusual." if checked else "No rule could be checked."
    if len(open_findings) == 1:
        return f"1 thing to look at: {open_findings[0].message}"
    return f"{len(open_findings)} things to look at."


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
