"""``lightning-geo diagnose``: verdict, findings, exit codes, and the same as while the run went on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.detector import Detector
from lightning_geo.analysis.findings.diagnosis import diagnose, recorded_findings
from lightning_geo.analysis.findings.rule import Level, Rule
from lightning_geo.cli.main import main
from lightning_geo.storage.history import GeometryHistory, load_history
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile

KEYS = {"rule", "severity", "metric", "stack", "layers", "heads", "since_step", "value", "usual", "message",
        "causes", "next", "until_step"}  # fmt: skip


def write(
    folder: Path, values: list[float], rules: list[Rule] | None = None, metric: str = "normalized_entropy"
) -> str:
    """A run of 2 layers × 4 heads, with what its monitor found."""
    sink, detector = RecordFile(folder, "geometry"), Detector() if rules is None else Detector(rules)
    for i, value in enumerate(values):
        arrays = {metric: np.array([[0.7] * 4, [value] * 4], np.float32)}
        record = GeometryRecord(
            {"encoder": arrays}, {"class": "Tiny\x1b[2J"}, step=50 * i, wall_time=1.7e9 + i
        )
        record.findings = detector.update(record)
        sink.write(record)
    sink.close()
    return str(folder)


def test_verdict_first_then_evidence_and_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", write(tmp_path, [0.7, 0.7, 0.01, 0.01])]) == 1
    text = capsys.readouterr().out
    assert text.startswith("Something is wrong: 4 of 4 heads in layer 1 attend to essentially one token")
    assert "CRITICAL  entropy_collapse, encoder, since step 100" in text
    assert "Evidence: normalized_entropy 0.010, usual 0.700." in text
    assert "Next: Lower the learning rate" in text
    assert "4 samples up to step 150; 15 rules were not checked, since they need" in text
    assert "frozen_layer, never_trained, lost_updates: unchanged_share" in text


def test_show_begins_with_the_words_of_diagnose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, values in {
        "collapse": [0.7, 0.7, 0.01, 0.01], "well": [0.7, 0.7], "cured": [0.7, 0.01, 0.01, 0.7, 0.7],
    }.items():  # fmt: skip
        run = write(tmp_path / name, values)
        status = main(["diagnose", run])
        verdict, *_ = capsys.readouterr().out.split("\n")
        assert main(["show", run]) == 0  # it describes a run, and is no check
        first, second, *_ = capsys.readouterr().out.split("\n")
        assert first == verdict
        assert (second == "lightning-geo diagnose shows where, since when and what to do.") == bool(status)


def test_json_has_every_key_and_a_healthy_run_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", "--json", write(tmp_path / "sick", [0.7, 0.01, 0.01])]) == 1
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert set(finding) == KEYS
    assert finding["layers"] == [1]
    assert finding["heads"] == [[1, head] for head in range(4)]
    assert (finding["since_step"], finding["until_step"]) == (50, None)
    assert main(["diagnose", "--json", write(tmp_path / "well", [0.7, 0.6, 0.7])]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "Nothing unusual."
    # what has ended is told, but no longer wrong
    assert main(["diagnose", write(tmp_path / "cured", [0.7, 0.01, 0.01, 0.7, 0.7])]) == 0
    assert "from step 50 to 200, ended" in capsys.readouterr().out


def test_bad_input_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "a" / "run", [0.7])
    write(tmp_path / "a" / "other", [0.7])
    (tmp_path / "rules.yaml").write_text("silence: [departures]")
    for arguments in (
        [str(tmp_path / "none")],
        [str(tmp_path / "a")],
        [run, "--rules", str(tmp_path / "rules.yaml")],
    ):
        assert main(["diagnose", *arguments]) == 2
    assert "Did you mean 'departure'" in capsys.readouterr().err


def test_the_record_keeps_what_was_found_and_diagnose_finds_it_anew(tmp_path: Path) -> None:
    history = load_history(write(tmp_path / "run", [0.7, 0.01, 0.01, 0.01, 0.7, 0.7]))
    assert [f.as_dict() for f in diagnose(history).findings] == [
        f.as_dict() for f in recorded_findings(history)
    ]
    # a rule of the user's, in the record alone
    mine = Rule("mine", ("normalized_entropy",), Level(at_most=0.1), "{where}", samples=1)
    own = load_history(write(tmp_path / "own", [0.7, 0.09, 0.09], [mine]))
    assert [f.rule for f in diagnose(own).findings] == ["mine"]


def test_a_resumed_run_forgets_what_it_found_in_samples_that_were_replaced(tmp_path: Path) -> None:
    write(tmp_path, [0.7, 0.7, 0.01, 0.01])
    sink = RecordFile(tmp_path, "geometry", resumed_at=100)
    sink.write(GeometryRecord({"encoder": {"normalized_entropy": np.full((2, 4), 0.7)}}, step=100))
    sink.close()
    history = load_history(tmp_path)
    assert recorded_findings(history) == []
    assert len(history) == 3


def test_nothing_is_said_of_a_run_that_no_rule_could_be_checked_for() -> None:
    record = GeometryRecord({"encoder": {"qk_norm": np.ones((2, 2), np.float32)}})
    diagnosis = diagnose(GeometryHistory([record]))
    assert diagnosis.verdict == "No rule could be checked."


def test_a_rule_that_the_monitor_silenced_is_not_looked_for() -> None:
    records = []
    for step in (0, 1, 2):
        entropy = np.full((1, 4), 0.9 if step == 0 else 0.01, np.float32)
        record = GeometryRecord({"encoder": {"normalized_entropy": entropy}}, step=step)
        record.looked_for = ["not_finite"]
        records.append(record)
    assert diagnose(GeometryHistory(records)).findings == ()
    assert [f.rule for f in diagnose(GeometryHistory(records), RULES.values()).findings] == [
        "entropy_collapse"
    ]
