"""Findings as destinations show them: Markdown for TensorBoard, a title and a text for W&B."""

from __future__ import annotations

from lightning_geo.analysis.findings.words import span
from lightning_geo.storage.finding import Finding

__all__ = ["markdown", "title"]


def title(finding: Finding) -> str:
    """Return a finding's name: the same for all its alerts, so that W&B limits their rate.

    Example:
        >>> title(Finding("rank_collapse", "warning", "m", "encoder", (1,), (), 5, 0.5, (0.6, 1), "m"))
        'Rank collapse (encoder)'
    """
    return f"{finding.rule.replace('_', ' ').capitalize()} ({finding.stack})"


def markdown(finding: Finding) -> str:
    """Return a finding as Markdown; backslashes keep the model's and the user's names as they are.

    Example:
        >>> found = Finding("sharp", "note", "m", "s", (1,), (), 5, 0.5, (0.6, 1), "Low_er.", (), ("Wait.",))
        >>> print(markdown(found.closed(50)))
        **Sharp (s)**: note from step 5 to 50, ended. Low\\_er.
        <BLANKLINE>
        Next: Wait.
    """
    parts = [
        f"**{_escaped(title(finding))}**: {finding.severity} {span(finding)}. {_escaped(finding.message)}"
    ]
    parts += [f"Usual causes: {_escaped('; '.join(finding.causes))}."] * bool(finding.causes)
    parts += [f"Next: {_escaped(' '.join(finding.next))}"] * bool(finding.next)
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|" else c for c in text)
