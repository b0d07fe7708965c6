"""An audit as one HTML file for readers outside engineering. No torch, no script."""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from lightning_geo.analysis.audit.check import RESULTS, Audit, Check, Result
from lightning_geo.analysis.audit.ledger import Receipt
from lightning_geo.analysis.audit.words import (
    asked,
    counted,
    found,
    places_text,
    readable,
    verdict,
    waiver_text,
)
from lightning_geo.analysis.runs import Run, describe_model
from lightning_geo.metrics.spec import unit_and_range
from lightning_geo.report.figures import matrix
from lightning_geo.report.limit_scale import limit_scale
from lightning_geo.report.rendering import Table, render
from lightning_geo.utils.formatting import moment

__all__ = ["AuditCard", "audit_page"]

#: Colour of each result: the classes of style.css.
_LEVELS: dict[Result, str] = {
    "breached": "critical", "not measured": "warning", "waived": "waived", "passed": "well",
}  # fmt: skip


class AuditCard(NamedTuple):
    """One check as the page shows it.

    Args:
        level: Class of its colour.
        result: Its result.
        title: The metric in words, and where.
        name: Name of the limit.
        why: The policy's reason.
        asked: The policy's requirement.
        found: The values found.
        counted: How many values passed, and did not.
        optional: Whether the policy does not require it.
        scale: The values beside the limit.
        pictures: The layers and heads.
    """

    level: str
    result: str
    title: str
    name: str
    why: str
    asked: str
    found: str
    counted: str
    optional: bool
    scale: Markup
    pictures: list[Markup]


def audit_page(
    result: Audit, run: Run, release: Run | None, content: dict[str, Any], receipt: Receipt
) -> str:
    """Return an HTML page: the requirements, the values found, who decided, and what is unknown.

    Args:
        result: The audit.
        run: The audited run.
        release: The earlier release, if there is one.
        content: The audit as the ledger has it.
        receipt: Its place in the ledger.
    """
    checks = sorted(result.checks, key=lambda check: RESULTS.index(check.result))
    several = len(run.history.stacks) > 1
    return render(
        "audit.html.jinja",
        title=f"Audit of {run.name}",
        policy=result.policy,
        verdict=verdict(result),
        level=_LEVELS[result.result],
        tiles=[(result.count(name), name, _LEVELS[name]) for name in reversed(RESULTS)],
        about=_facts(result, run, release, content),
        cards=[_card(check, several) for check in checks],
        waivers=[
            (use.waiver.limit, places_text(use.waiver.places), use.waiver.reason, use.waiver.approved_by,
             use.state, waiver_text(use))
            for use in result.waivers
        ],
        missing=[_missing(check, several) for check in checks if check.counts.not_measured],
        notes=content["notes"],
        metrics=_metrics(result),
        evidence=_evidence(content, receipt),
        command=f"lightning-geo audit verify {shlex.quote(receipt.path)} --expect {receipt.hash}",
    )  # fmt: skip


def _facts(result: Audit, run: Run, release: Run | None, content: dict[str, Any]) -> list[tuple[str, str]]:
    history = run.history
    probe = content["run"]["probe_fingerprint"]
    facts = [
        ("Policy", f"{result.policy.name}. {result.policy.purpose}".strip()),
        ("Decided by", result.policy.owner),
        ("Model", describe_model(history)),
        ("Recorded", f"{len(history)} samples, the last at training step {history.steps[-1]}, "
                     f"{moment(float(history.metadata['wall_time'][-1]))}"),
        ("Measured on", f"the fixed texts or inputs with fingerprint {probe}" if probe
                        else "the training data as it came"),
        ("Audited", f"{content['time'][:16].replace('T', ' ')} UTC"),
    ]  # fmt: skip
    if release is not None:
        facts.insert(5, ("Earlier release", f"{release.name}, step {release.history.steps[-1]}"))
    return facts


def _card(check: Check, several: bool) -> AuditCard:
    scale = Markup("") if check.worst is None else limit_scale(check)
    pictures = []
    if check.result in ("breached", "waived") and check.worst is not None:
        pictures = [_map(check)]
    title = readable(check.metric) + (f" in {check.stack}" if several else "")
    return AuditCard(
        _LEVELS[check.result], check.result, title, check.limit.name, check.limit.why,
        asked(check), found(check), counted(check),
        not check.limit.required, scale, pictures,
    )  # fmt: skip


def _map(check: Check) -> Markup:
    known = check.values[np.isfinite(check.values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if check.limit.of_change:
        high = max(-low, high)
        low = -high
    assert check.worst is not None
    what = "change" if check.limit.of_change else "value"
    return matrix(
        check.values, f"{what} in each layer{' and head' if check.values.ndim > 1 else ''}, step "
        f"{check.worst.step}", low, high if high > low else low + 1, diverging=check.limit.of_change,
        marked=check.breached | check.waived,
    )  # fmt: skip


def _missing(check: Check, several: bool) -> str:
    where = f" in {check.stack}" if several else ""
    required = "The policy requires it." if check.limit.required else "The policy does not require it."
    count = check.counts.not_measured
    reasons = " ".join(check.reasons)
    return (
        f"{readable(check.metric)}{where} ({check.limit.name}): {count:,} of {sum(check.counts):,} values. "
        f"{reasons} {required}"
    )


def _metrics(result: Audit) -> Table:
    specs = {check.spec.name: check.spec for check in result.checks}
    return Table(
        ("number", "what it means", "how it is computed", "unit, range"),
        [(readable(spec.name), spec.meaning, spec.formula, unit_and_range(spec)) for spec in specs.values()],
    )


def _evidence(content: dict[str, Any], receipt: Receipt) -> list[tuple[str, str]]:
    run, release, policy = content["run"], content["release"], content["policy"]
    rows = [
        ("Run", run["path"]),
        ("Hash of the run's record", run["record"]),
        ("Policy file", policy["path"]),
        ("Hash of the policy", policy["sha256"]),
        ("Ledger", f"{receipt.path}, line {receipt.number}"),
        ("Hash of the line", receipt.hash),
    ]
    if release is not None:
        rows[2:2] = [
            ("Earlier release", release["path"]),
            ("Hash of the release's record", release["record"]),
        ]
    return rows
