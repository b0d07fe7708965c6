"""The route ``findings``: what the monitor of a run found, as far as the record tells."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dashboard.providers import ask, client_of, eventually, provider_of, write_run
from lightning_geo import load_history
from lightning_geo.analysis.findings.diagnosis import recorded_findings
from lightning_geo.dashboard.run_findings import run_findings
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record

HOSTILE = '<img src=x onerror="alert(1)">'
LOW = Finding("low", "warning", "entropy", "encoder", (1,), ((1, 0), (1, 2)), 10, 0.02, (0.6, 0.9), HOSTILE)
BROKEN = Finding("broken", "critical", "", "encoder", (0,), (), 20, float("nan"), (0.0, np.inf), "It broke.")
RULES = ["low", "broken", HOSTILE]


def record(step: int, *findings: Finding, rules: list[str] = RULES) -> GeometryRecord:
    made = make_record(step, metrics=["entropy"], wall_time=time.time())
    return replace(made, findings=list(findings), looked_for=rules)


@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_findings_are_those_of_the_samples_in_force(kind: str, tmp_path: Path) -> None:
    run = tmp_path / HOSTILE
    write_run(run, [record(0), record(10, LOW), record(20, BROKEN), record(30, LOW.closed(30))])
    write_run(tmp_path / "silent", [record(0, rules=[]), record(10, rules=[])])
    client = client_of(provider_of(kind, tmp_path))

    def found(run: str = HOSTILE) -> dict[str, Any]:
        answer: dict[str, Any] = ask(client, "findings", run=run, monitor="geometry").json or {}
        return answer

    eventually(lambda: found().get("last_step") == 30 and found("silent").get("samples") == 2)
    assert found()["findings"] == [BROKEN.as_dict(), LOW.closed(30).as_dict()]
    assert found() == found() | {
        "verdict": "Something is wrong: It broke.", "level": "critical", "gaps": "", "looked_for": RULES,
        "samples": 4, "first_step": 0, "last_step": 30,
    }  # fmt: skip
    silent = found("silent")
    assert (silent["level"], silent["looked_for"]) == ("unknown", [])
    assert "did not look for findings; `lightning-geo diagnose RUN`" in silent["verdict"]
    assert ask(client, "findings", run="silent", monitor="other").status_code == 404
    assert ask(client, "findings", run="silent").status_code == 400
    later = (record(step) for step in [40])  # measured when it is resumed
    write_run(run, later, resumed_at=15)  # what it found at 20 and 30 is void
    eventually(lambda: found()["last_step"] == 40)
    assert (
        [Finding.from_dict(f) for f in found()["findings"]] == recorded_findings(load_history(run)) == [LOW]
    )
    assert (found()["verdict"], found()["samples"]) == (f"1 thing to look at: {LOW.message}", 3)


class Datum(NamedTuple):
    step: int
    wall_time: float
    numpy: Any


def datum(step: int, **metadata: Any) -> Datum:
    return Datum(step, float(step), np.array(json.dumps(metadata).encode(), object))


def test_what_is_damaged_is_left_out_and_said() -> None:
    well = datum(0, looked_for=RULES)
    assert run_findings([well], [])["level"] == "well"
    damaged = [
        Datum(1, 1.0, np.array(b"\xff{", object)),
        Datum(2, 2.0, np.zeros(3)),
        datum(3, looked_for=RULES, findings=[{"rule": "low"}, None, LOW.as_dict() | {"since_step": 1e999}]),
        datum(4, looked_for=RULES, findings={"a": 1}),
    ]
    found = run_findings([well, *damaged], [])
    assert (found["level"], found["verdict"]) == ("unknown", "Nothing unusual in what could be read.")
    assert "6 entries of the record could not be read" in found["gaps"]
    found = run_findings([well, *damaged, datum(5, findings=[LOW.as_dict()])], [], kept=6)
    assert (found["level"], found["findings"]) == ("warning", [LOW.as_dict()])
    assert "kept 6 samples" in found["gaps"]
    assert "in 3 of 6 samples only, the last at step 4" in found["gaps"]
    assert run_findings([], [])["samples"] == 0
