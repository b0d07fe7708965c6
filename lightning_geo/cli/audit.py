"""``lightning-geo audit``: a run against a policy of limits, and the ledger of these audits."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_geo._version import __version__
from lightning_geo.analysis.audit.check import RESULTS, Audit, Check, audit
from lightning_geo.analysis.audit.ledger import Receipt, append
from lightning_geo.analysis.audit.policy_file import read_policy
from lightning_geo.analysis.audit.record_hash import record_hash
from lightning_geo.analysis.audit.verification import Verification, verify
from lightning_geo.analysis.audit.words import (
    asked,
    counted,
    found,
    places_text,
    run_notes,
    verdict,
    waiver_text,
)
from lightning_geo.analysis.runs import Run
from lightning_geo.cli.command import add_command, one_run, put, write_page
from lightning_geo.cli.runs_as_json import as_object
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.tables import terminal_width, wrapped

__all__ = ["add_parser", "as_dict", "as_text"]

_LEDGER = "audits.jsonl"


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "audit", _run, "check a run against a policy of limits, or verify the ledger of audits"
    )
    parser.usage = (
        "lightning-geo audit RUN --policy FILE [--release RUN] [--ledger FILE]\n"
        "                           [--html FILE] [--json]\n"
        "       lightning-geo audit verify LEDGER [--expect HASH] [--lines-only] [--json]"
    )
    add = parser.add_argument
    add("run", nargs="+", metavar="RUN", help="directory of one run; or `verify` and a ledger")
    add("--policy", metavar="FILE", help="YAML with limits, their owner and waivers")
    add("--release", metavar="RUN", help="earlier run that limits on change compare with")
    add("--ledger", metavar="FILE", help=f"file that the audit is appended to (default: {_LEDGER})")
    add("--html", type=Path, metavar="FILE", help="write a page for readers outside engineering")
    add("--expect", metavar="HASH", help="verify: hash that the ledger must hold, as an audit printed it")
    add("--lines-only", action="store_true", help="verify: do not read the audited records again")
    add("--json", action="store_true", help="print everything as one JSON object")


def _run(options: argparse.Namespace) -> int:
    if options.run[0] == "verify":
        return _verify(options)
    if len(options.run) > 1 or not options.policy:
        raise RunError("Expected one run and --policy FILE, or `verify` and a ledger.")
    if options.expect or options.lines_only:
        raise RunError("--expect and --lines-only belong to `audit verify LEDGER`.")
    run, unread = one_run(options.run[0], options.monitor)
    notes = run_notes(run.history)
    policy = read_policy(options.policy, run.history.specs)
    release = None
    if options.release:
        release, more = one_run(options.release, options.monitor)
        unread += more
        if not any(limit.of_change for limit in policy.limits):
            notes.append("The policy limits no change: the earlier release was not compared.")
    result = audit(run.history, policy, None if release is None else release.history, unread=unread)
    notes = [*unread, *notes]
    content = as_dict(result, run, release, notes)
    if options.html:
        _check_writable(options.html)
    receipt = append(options.ledger or _LEDGER, content)
    if options.json:
        put(json.dumps({**content, "ledger": receipt._asdict()}, indent=1))
    else:
        put(as_text(result, notes, receipt))
    if options.html:
        from lightning_geo.report.audit_page import audit_page

        page = audit_page(result, run, release, content, receipt)
        write_page(options.html, page, quiet=options.json)
    return 1 if result.failed else 0


def _check_writable(path: Path) -> None:
    """Raise before the audit is recorded if its page could not be written after that."""
    try:
        path.open("ab").close()
    except OSError as error:
        raise RunError(f"Cannot write {os.fspath(path)!r}: {error.strerror}.") from error


def as_dict(result: Audit, run: Run, release: Run | None, notes: Sequence[str]) -> dict[str, Any]:
    """Return an audit as JSON-serialisable values, which are also its entry in the ledger."""
    policy = result.policy
    return {
        "format": 1,
        "version": __version__,
        "time": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "result": result.result,
        "verdict": verdict(result),
        "run": _identity(run),
        "release": None if release is None else _identity(release),
        "policy": {"name": policy.name, "owner": policy.owner, "path": os.path.abspath(policy.path),
                   "sha256": policy.hash},
        "counts": {name: result.count(name) for name in RESULTS},
        "checks": [_check(check) for check in result.checks],
        "waivers": [
            {"limit": use.waiver.limit, "state": use.state, "values": use.values,
             "approved_by": use.waiver.approved_by, "reason": use.waiver.reason,
             "expires": use.waiver.expires.isoformat()}
            for use in result.waivers
        ],
        "notes": list(notes),
    }  # fmt: skip


def _identity(run: Run) -> dict[str, Any]:
    history, path = run.history, str(run.path)
    return {
        "path": path if "://" in path else os.path.abspath(path),
        "monitor": history.name,
        "record": record_hash(history),
        "samples": len(history),
        "last_step": int(history.steps[-1]),
        "probe_fingerprint": str(history.metadata["probe_fingerprint"][-1]),
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "limit": check.limit.name,
        "metric": check.metric,
        "stack": check.stack,
        "required": check.limit.required,
        "bounds": {
            key: value
            for key in ("at_least", "at_most", "change_at_most")
            if (value := getattr(check.limit, key)) is not None
        },
        "result": check.result,
        "asked": asked(check),
        "found": found(check),
        "values": check.counts._asdict(),
        "since_step": check.since,
        "worst": None if check.worst is None else as_object(check.worst),
    }


def as_text(result: Audit, notes: Sequence[str], receipt: Receipt) -> str:
    """Return the verdict, every check from the worst result on, the waivers, and the place in the ledger."""
    policy = result.policy
    lines = [f"{verdict(result)}", f"Policy: {policy.name}. Owner: {policy.owner}."]
    checks = sorted(result.checks, key=lambda check: RESULTS.index(check.result))
    parts = ["\n".join(map(_line, lines)), *map(_check_text, checks)]
    if result.waivers:
        waivers = [
            f"{use.waiver.limit}, {places_text(use.waiver.places)}: {waiver_text(use)}. {use.waiver.reason} "
            f"(approved by {use.waiver.approved_by})"
            for use in result.waivers
        ]
        parts.append("\n".join(["WAIVERS", *map(_indented, waivers)]))
    parts += ["\n".join(map(_indented, notes))] if notes else []
    parts.append(_line(f"Ledger: {receipt.path}, line {receipt.number}, hash {receipt.hash}"))
    return "\n\n".join(parts)


def _check_text(check: Check) -> str:
    optional = "" if check.limit.required or check.result != "not measured" else " (optional)"
    title = f"{check.result.upper()}{optional}  {check.limit.name}, {check.metric}, {check.stack}"
    lines = [f"Asked: {asked(check)}.", found(check), f"Counted: {counted(check)}."]
    if check.result == "passed":
        lines = lines[:2]
    return "\n".join([_line(title), *map(_indented, lines)])


def _line(text: str) -> str:
    return wrapped(text, terminal_width(), rest="  ")


def _indented(text: str) -> str:
    return wrapped(text, terminal_width(), first="  ", rest="    ")


def _verify(options: argparse.Namespace) -> int:
    if len(options.run) != 2 or options.policy or options.release or options.ledger or options.html:
        raise RunError("Expected `verify` and one ledger, with no other options than --expect, --lines-only "
                       "and --json.")  # fmt: skip
    result = verify(options.run[1], options.expect, records=not options.lines_only)
    if options.json:
        put(json.dumps(result._asdict(), indent=1))
    else:
        put(_verification_text(result, options))
    return 1 if result.problems else 0


def _verification_text(result: Verification, options: argparse.Namespace) -> str:
    count = len(result.problems)
    head = "Intact" if not count else f"NOT INTACT: {count} problem{'s' if count > 1 else ''}"
    head = f"{head}. {options.run[1]}: {result.lines} lines, hash of the last {result.head or 'unknown'}"
    more = [*result.problems, *result.notes]
    if not options.lines_only:
        more.append(f"{result.records} records were read again and hold what was audited.")
    if options.expect is None:
        more.append("Whether lines are missing at the end only --expect HASH can show.")
    return "\n".join([_line(head), *map(_indented, more)])
