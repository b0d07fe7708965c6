"""``lightning-geo audit``: exit codes, what it prints and appends, and the ledger verified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_geo.cli.main import main
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from support.records import write

POLICY = """\
policy: Careful
owner: R. Roe
limits:
- {name: focus, metric: entropy, at_least: 0.001}
- {name: spread, metric: entropy, at_most: AT_MOST, samples: all, why: Because.}
"""
WAIVER = "waivers: [{limit: spread, reason: Known., approved_by: D. Oe, expires: 2999-12-31}]\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose entropies lie below 10, beside four policies."""
    monkeypatch.chdir(tmp_path)
    write(Path("run"), 0, 50)
    for name, text in {
        "good": POLICY.replace("AT_MOST", "20"),
        "bad": POLICY.replace("AT_MOST", "0.01"),
        "waived": POLICY.replace("AT_MOST", "0.01") + WAIVER,
        "change": POLICY.replace("at_most: AT_MOST, samples: all", "change_at_most: 0"),
        "unmeasured": POLICY.replace("AT_MOST", "20").replace("entropy", "max_logit", 1),
        "wrong": POLICY,
    }.items():
        Path(f"{name}.yaml").write_text(text)
    return tmp_path


def test_exit_codes_and_the_ledger(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def audit(*arguments: str) -> tuple[int, str]:
        status = main(["audit", *arguments])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    status, text = audit("run", "--policy", "good.yaml")
    assert status == 0
    assert text.startswith("Passed: all 2 checks.\nPolicy: Careful. Owner: R. Roe.\n")
    assert "Ledger: audits.jsonl, line 1, hash " in text
    status, text = audit("run", "--policy", "bad.yaml")
    assert (status, text.split("\n")[0]) == (1, "Breached: 1 of 2 checks (spread).")
    assert text.index("BREACHED  spread, entropy") < text.index("PASSED  focus")
    status, text = audit("run", "--policy", "waived.yaml")
    assert status == 0
    assert "spread, every layer: excuses 12 values, until 2999-12-31. Known. (approved by D. Oe)" in text
    status, text = audit("run", "--policy", "unmeasured.yaml")
    assert status == 1
    assert "NOT MEASURED  focus, max_logit" in text
    # without an earlier release, with itself, and with another one
    assert audit("run", "--policy", "change.yaml")[0] == 1
    assert audit("run", "--policy", "change.yaml", "--release", "run")[0] == 0
    write(Path("other"), 0, 50, seed=1)
    status, text = audit("run", "--policy", "change.yaml", "--release", "other")
    assert (status, "of the earlier release" in text) == (1, True)
    head = json.loads(Path("audits.jsonl").read_bytes().splitlines()[-1])["hash"]

    assert audit("verify", "audits.jsonl", "--expect", head)[0] == 0
    status, text = audit("verify", "audits.jsonl")
    assert (status, "Intact. audits.jsonl: 7 lines" in text, "only --expect" in text) == (0, True, True)
    assert audit("verify", "audits.jsonl", "--expect", "0" * 64)[0] == 1
    write(Path("other"), 50, seed=2)
    status, text = audit("verify", "audits.jsonl")
    assert (status, "The record of line 7 changed since its audit" in text) == (1, True)
    assert audit("verify", "audits.jsonl", "--lines-only")[0] == 0
    status, text = audit("verify", "audits.jsonl", "--json")
    assert (status, json.loads(text)["lines"]) == (1, 7)


def test_bad_input_exits_with_2_and_is_not_recorded(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["run", "--policy", "wrong.yaml"], "line 5: Expected `at_most`"),
        (["run", "--policy", "none.yaml"], "Cannot read"),
        (["none", "--policy", "good.yaml"], "none"),
        ([".", "--policy", "good.yaml"], "2 runs"),
        (["run"], "--policy"),
        (["run", "run", "--policy", "good.yaml"], "one run"),
        (["run", "--policy", "good.yaml", "--expect", "a"], "belong to"),
        (["run", "--policy", "good.yaml", "--release", "none"], "none"),
        (["run", "--policy", "good.yaml", "--ledger", "good.yaml"], "last line is damaged"),
        (["run", "--policy", "good.yaml", "--html", "none/a.html"], "Cannot write"),
        (["verify"], "one ledger"),
        (["verify", "none.jsonl"], "Cannot read the ledger"),
        (["verify", "audits.jsonl", "--policy", "good.yaml"], "no other options"),
    ):
        if "2 runs" in message:
            write(Path("second"), 0)
        assert main(["audit", *arguments]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
    assert not Path("audits.jsonl").exists()


def test_json_is_the_ledgers_line_and_says_what_was_skipped(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = Path("run").iterdir()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1  # damages the last sample
    file.write_bytes(content)
    arguments = ["--policy", "bad.yaml", "--ledger", "l.jsonl", "--html", "a.html", "--json"]
    assert main(["audit", "run", *arguments]) == 1
    printed = json.loads(capsys.readouterr().out)
    line = json.loads(Path("l.jsonl").read_bytes())
    assert {**printed, "ledger": None} == {
        **{key: value for key, value in line.items() if key not in ("hash", "number", "previous")},
        "ledger": None,
    }
    assert printed["ledger"] == {"path": "l.jsonl", "number": 1, "hash": line["hash"]}
    assert (printed["run"]["samples"], printed["run"]["path"]) == (1, str(files / "run"))
    assert "skipping damaged parts" in printed["notes"][0]
    assert main(["audit", "run", "--policy", "good.yaml"]) == 1  # a record that is not whole passes no audit
    assert capsys.readouterr().out.startswith("Not shown: parts of the record could not be read")
    [breach] = [check for check in printed["checks"] if check["result"] == "breached"]
    assert breach["values"] == {"passed": 0, "breached": 6, "waived": 0, "not_measured": 0}
    assert "skipping damaged parts" in Path("a.html").read_text()


def test_names_cannot_move_the_cursor_and_infinity_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = RecordFile(tmp_path / "run", "geometry")
    values = np.array([[np.inf, 1.0]], np.float32)
    sink.write(
        GeometryRecord(
            {"enc\x1b[2J": {"entropy": values}}, {"class": "\x1b[2J"}, coverage={"seen": 4, "measured": 3}
        )
    )
    sink.close()
    policy = tmp_path / "p.yaml"
    policy.write_text(POLICY.replace("AT_MOST", "2").replace("R. Roe", '"\\e[2J"'))
    ledger = str(tmp_path / "l.jsonl")
    assert main(["audit", str(tmp_path / "run"), "--policy", str(policy), "--ledger", ledger]) == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "Worst: ∞ nats in layer 0, head 0 at step 0, no finite number." in " ".join(text.split())
    assert "could not measure all of the model's attention (least: 75%)" in " ".join(text.split())
    assert main(["audit", "verify", ledger]) == 0
