"""What a run's monitor found, out of the metadata of its samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lightning_geo.dashboard.samples import in_force
from lightning_geo.storage.finding import Finding, latest, ranked, verdict, worst

__all__ = ["run_findings"]

_NOT_LOOKED_FOR = "This run's monitor did not look for findings; `lightning-geo diagnose RUN` does."
_GAPS = "Nothing unusual in what could be read."
#: Python's for JSON that is damaged: no JSON, no text, not the types that a record has, nested too deep.
_DAMAGED = (ValueError, TypeError, AttributeError, RecursionError)


def run_findings(samples: Sequence[Any], sessions: Sequence[Any], kept: int = 0) -> dict[str, Any]:
    """Return the verdict on a run and its findings, as the page is told.

    What is damaged is left out: a sample's metadata, or one finding of it.

    Args:
        samples: Data of the metadata with ``step``, ``wall_time`` and ``numpy``, in the order of writing.
        sessions: Data of session starts.
        kept: Samples at most that TensorBoard keeps of a tag, at random; 0 for all.

    Returns:
        ``verdict``, ``level`` (the worst severity that is open, ``well`` for none, or ``unknown`` where
        nobody looked or there are gaps), ``gaps`` (why findings may be missing, empty if none can be),
        ``findings``, ``looked_for`` (rules that the last sample was checked for), ``samples``, ``first_step``
        and ``last_step``.
    """
    standing = in_force(samples, sessions)
    read = [_metadata(sample) for sample in standing]
    checked = [(sample.step, rules) for sample, m in zip(standing, read, strict=True) if (rules := _rules(m))]
    entries = [_findings(metadata) for metadata in read]
    findings = ranked(latest(finding for some in entries for finding in some if finding is not None))
    damaged = sum(not metadata for metadata in read) + sum(some.count(None) for some in entries)
    gaps = []
    if 0 < kept <= len(samples):
        gaps.append(f"TensorBoard kept {kept} samples and dropped others (--samples_per_plugin).")
    if damaged:
        gaps.append(f"{damaged} {'entry' if damaged == 1 else 'entries'} of the record could not be read.")
    if 0 < len(checked) < len(standing):
        gaps.append(
            f"The monitor looked for findings in {len(checked)} of {len(standing)} samples only, the last at "
            f"step {checked[-1][0]}."
        )
    level: str = worst(findings) or "well"
    text = verdict(findings)
    if not checked and not findings:
        level, text = "unknown", _NOT_LOOKED_FOR
    elif gaps and level == "well":
        level, text = "unknown", _GAPS
    return {
        "verdict": text,
        "level": level,
        "gaps": " ".join(gaps),
        "findings": [finding.as_dict() for finding in findings],
        "looked_for": checked[-1][1] if checked else [],
        "samples": len(standing),
        "first_step": int(standing[0].step) if standing else None,
        "last_step": int(standing[-1].step) if standing else None,
    }


def _metadata(sample: Any) -> dict[str, Any]:
    try:
        metadata = json.loads(sample.numpy.item())
    except _DAMAGED:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _rules(metadata: dict[str, Any]) -> list[str]:
    rules = metadata.get("looked_for")
    return [str(rule) for rule in rules] if isinstance(rules, list) else []


def _findings(metadata: dict[str, Any]) -> list[Finding | None]:
    """Findings of a sample, None for each that is damaged."""
    findings: list[Finding | None] = []
    stored = metadata.get("findings", [])
    for values in stored if isinstance(stored, list) else [stored]:
        try:
            findings.append(Finding.from_dict(values))
        except (ValueError, OverflowError):  # such as a step of 1e999
            findings.append(None)
    return findings
