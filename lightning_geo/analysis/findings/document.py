"""FINDINGS.md, the guide to findings: its table of rules comes from the rules, the text around it is by hand.

``python -m lightning_geo.analysis.findings.document`` rewrites the table of the file beside this module.
"""

from __future__ import annotations

from pathlib import Path

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.rule import Departure, Level, Rule
from lightning_geo.metrics.document import updated

__all__ = ["GUIDE", "table"]

#: The guide, which ships with the package.
GUIDE = Path(__file__).with_name("FINDINGS.md")


def table() -> str:
    """Return the rules as a Markdown table.

    Example:
        >>> table().splitlines()[0]
        '| rule | severity | looks for | for how long | source |'
    """
    lines = ["| rule | severity | looks for | for how long | source |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(lines + [_row(rule) for rule in RULES.values()]) + "\n"


def _row(rule: Rule) -> str:
    severity: str = rule.severity
    if rule.critical_layers is not None:
        severity += f"; critical from {100 * rule.critical_layers:g} % of the layers on"
    samples = "one sample" if rule.samples == 1 else f"{rule.samples} samples in a row"
    cells = f"`{rule.name}`", severity, _test(rule), samples, rule.source
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _test(rule: Rule) -> str:
    test, metrics = rule.test, ", ".join(f"`{metric}`" for metric in rule.metrics)
    heads = f", in {100 * rule.heads:g} % of a layer's heads" if rule.heads else ""
    if isinstance(test, Level):
        return f"{metrics}{_limits(test.at_least, test.at_most)}{_start(test)}{heads}{_others(test)}"
    if isinstance(test, Departure):
        way = {"up": "above", "down": "below", "both": "off"}[test.direction]
        return (
            f"{metrics} {way} the {'linear trend' if test.slope else 'mean'} of {test.window} samples by "
            f"{test.spreads:g} usual errors, "
            f"and outside their values by {100 * test.share:g} %{heads}"
        )
    return "NaN or infinity among a layer's activations"


def _limits(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    return f" ≥ {low:g}" if low is not None else f" ≤ {high:g}"


def _start(level: Level) -> str:
    if level.start_at_least is None and level.start_at_most is None:
        return ""
    metric = f" `{level.start_of}`" if level.start_of else ""
    return f", its first value{metric}{_limits(level.start_at_least, level.start_at_most)}"


def _others(level: Level) -> str:
    return ", while another layer is not" if level.unlike_others else ""


def _main() -> None:
    """Bring the guide up to date."""
    GUIDE.write_text(updated(GUIDE.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    _main()
