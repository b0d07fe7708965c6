"""``lightning-geo tail``: lines of samples, the course of the run, and findings."""

from __future__ import annotations

import io
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_geo.cli.tail import follow
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.record_file import RecordFile
from support.records import make_record

FOUND = Finding("twins", "critical", "redundancy", "encoder", (1,), (), 300, 0.5, (0.1, 0.2), "They are.")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of more samples than tail shows of what is there."""
    file = RecordFile(tmp_path / "run", "geometry")
    for number in range(40):
        record = make_record(10 * number, metrics=["normalized_entropy", "redundancy"])
        record.stacks["encoder"]["normalized_entropy"][:] = number / 40
        record.stacks["encoder"]["redundancy"][:] = 0.5
        if number == 39:
            record.findings = [FOUND, replace(FOUND, rule="other", until_step=390, message="They were.")]
        file.write(record)
    return tmp_path / "run"


def test_lines_show_the_course_of_the_whole_run_and_its_findings(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    header, *lines = itertools.islice(follow(run, interval=0.0), 13)
    assert header.split() == ["step", "epoch", "normalized_entropy", "redundancy", "largest", "change"]
    assert [int(line.split()[0]) for line in lines[:10]] == list(range(300, 400, 10))
    assert lines[9].split()[2:6] == ["0.975", "▁▃▅▇█", "0.500", "▄▄▄▄▄"]  # since the run's start
    assert lines[10:] == [
        "  ! critical since step 300: They are.",
        "  ! critical from step 300 to 390, ended: They were.",
    ]


@pytest.mark.parametrize(("no_color", "red"), [(None, True), ("1", False)])
def test_a_critical_finding_is_red_in_a_terminal_unless_the_user_wants_no_colours(
    run: Path, monkeypatch: pytest.MonkeyPatch, no_color: str | None, red: bool
) -> None:
    class Terminal(io.StringIO):
        encoding = "ascii"

        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdout", Terminal())
    lines = list(itertools.islice(follow(run, interval=0.0), 13))
    assert lines[11].startswith("\x1b[31m  ! critical") is red
    assert "\x1b" not in lines[12]  # it has ended
    assert lines[10].isascii()
