"""``lightning-geo diagnose``: is something wrong with a run, where, since when, and what to do."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lightning_geo.analysis.findings.diagnosis import diagnose
from lightning_geo.analysis.findings.rule_set import read_rules
from lightning_geo.analysis.findings.words import evidence, span
from lightning_geo.cli.command import add_command, put, read_run
from lightning_geo.storage.diagnosis import Diagnosis
from lightning_geo.storage.finding import Finding
from lightning_geo.utils.tables import terminal_width, wrapped

__all__ = ["add_parser", "as_text"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "diagnose", _run, "list what is wrong or unusual in a run, and what to do")
    parser.add_argument("run", metavar="RUN", help="directory of one run")
    parser.add_argument(
        "--rules", metavar="FILE", help="YAML with `rules`, `change` and `silence` (default: built-in rules)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def _run(options: argparse.Namespace) -> int:
    rules = None if options.rules is None else read_rules(options.rules)
    run = read_run(options.run, options.monitor)
    diagnosis = diagnose(run.history, rules)
    put(json.dumps(diagnosis.as_dict(), indent=2) if options.json else as_text(diagnosis))
    return 1 if diagnosis.critical else 0


def as_text(diagnosis: Diagnosis) -> str:
    """Return the verdict, then each finding with its evidence and the next step."""
    parts = [wrapped(diagnosis.verdict, terminal_width())]
    parts += [_finding(finding) for finding in diagnosis.findings]
    parts.append(f"{diagnosis.samples} samples up to step {diagnosis.last_step}; {_checked(diagnosis)}")
    return "\n\n".join(parts)


def _checked(diagnosis: Diagnosis) -> str:
    if not diagnosis.unchecked:
        return "every rule was checked."
    rules: dict[tuple[str, ...], list[str]] = {}
    for name, metrics in diagnosis.unchecked.items():
        rules.setdefault(metrics, []).append(name)
    needs = (f"{', '.join(names)}: {' or '.join(metrics)}" for metrics, names in rules.items())
    lines = [wrapped(line, terminal_width(), first="  ", rest="    ") for line in needs]
    return "\n".join([f"{len(diagnosis.unchecked)} rules were not checked, since they need", *lines])


def _finding(finding: Finding) -> str:
    lines = [f"{finding.severity.upper()}  {finding.rule}, {finding.stack}, {span(finding)}", finding.message]
    lines += [f"Evidence: {evidence(finding)}."] * bool(finding.metric)
    lines += [f"Usual causes: {'; '.join(finding.causes)}."] * bool(finding.causes)
    lines += [f"Next: {' '.join(finding.next)}"] * bool(finding.next)
    head, *more = lines
    width = terminal_width()
    return "\n".join(
        [wrapped(head, width), *(wrapped(line, width, first="  ", rest="    ") for line in more)]
    )
