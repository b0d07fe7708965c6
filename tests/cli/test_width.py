"""Every command fits terminals of 80 and 120 columns, whatever the names of runs, stacks and metrics."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

import lightning_geo
from lightning_geo.cli.main import main
from lightning_geo.cli.tail import follow
from lightning_geo.storage.record_file import RecordFile
from support.records import make_record, write

POLICY = """\
policy: Careful about every single layer and head of the model
owner: R. Roe
limits:
- {name: focus, metric: entropy, at_least: 0.001, why: A head that attends to one token is a broken one.}
- {name: spread, metric: effective_rank, at_most: 1.5, samples: all, why: Because.}
waivers:
- {limit: spread, reason: Known since the first release of all., approved_by: D. Oe, expires: 2999-12-31}
"""

NAMES = st.text("ab_=.-,0 漢字é\u0301🎉×", min_size=1, max_size=60).filter(lambda name: name.strip(". "))


def printed(*arguments: object) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([str(argument) for argument in arguments]) in (0, 1)
    return out.getvalue()


def outputs(folder: Path, runs: list[Path]) -> dict[str, str]:
    """What each command prints for a person."""
    (folder / "policy.yaml").write_text(POLICY)
    ledger = folder / "audits.jsonl"
    return {
        "show": printed("show", runs[0]),
        "show runs": printed("show", *runs),
        "compare": printed("compare", *runs),
        "compare cells": printed("compare", *runs, "--metric", "subspace"),
        "compare groups": printed("compare", "--group", *runs, "--group", *runs[::-1]),
        "compare a group": printed("compare", "--group", *runs),
        "diagnose": printed("diagnose", runs[0]),
        "audit": printed("audit", runs[0], "--policy", folder / "policy.yaml", "--ledger", ledger),
        "audit verify": printed("audit", "verify", ledger),
        "heads": printed("heads", runs[0]),
        "heads by redundancy": printed("heads", runs[-1]),
        "tail": "\n".join(itertools.islice(follow(runs[0], interval=0.0), 4)),
    }


def two_runs(folder: Path, names: list[str], stacks: list[str]) -> list[Path]:
    """Runs in which heads collapse, with every default metric and importance."""
    paths = [folder / f"{number}{name}" for number, name in enumerate(names)]
    for seed, path in enumerate(paths):
        sink = RecordFile(path, "geometry")
        for step in (0, 50, 100_000):
            record = make_record(step, stacks=stacks, seed=seed, layers=12)
            for arrays in record.stacks.values():
                if not seed:
                    arrays["importance"] = arrays["entropy"] / 7
                arrays["normalized_entropy"][:] = 0.01 if step else 0.7
            record.matrices = {
                stack: {"head_similarity": np.full((12, 3, 3), 0.96, np.float32)} for stack in stacks
            }
            sink.write(record)
        sink.close()
    return paths


@pytest.mark.slow
@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])  # each takes a second: none to shrink
@given(st.lists(NAMES, min_size=2, max_size=2), st.lists(NAMES, min_size=1, max_size=2, unique=True))
def test_every_line_fits(names: list[str], stacks: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = two_runs(Path(folder), names, stacks)
        for width in (80, 120):
            with mock.patch.dict(os.environ, {"COLUMNS": str(width)}):
                for command, text in outputs(Path(folder), runs).items():
                    long = [line for line in text.split("\n") if cell_len(line) > width]
                    assert long == [], (command, width)


def test_a_pipe_gets_everything_on_one_line_each(tmp_path: Path) -> None:
    names = ["learning_rate=0.00002,warmup=100,layers=all", "learning_rate=0.00200,warmup=100,layers=all"]
    runs = two_runs(tmp_path, names, ["transformer.decoder.blocks"])
    texts = outputs(tmp_path, runs)
    assert all("…" not in text and "Not shown" not in text for text in texts.values())
    assert all(name in texts["show runs"] for name in names)
    assert "A moved" in texts["compare"]
    assert {line.split()[0] for line in texts["heads"].splitlines()[4:]} == {"remove", "keep"}


def test_json_and_csv_do_not_know_the_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = two_runs(tmp_path, ["a" * 60, "b" * 60], ["encoder"])
    forms = [("compare", *runs, "--json"), ("compare", *runs, "--csv"), ("diagnose", runs[0], "--json"),
             ("heads", runs[0], "--json")]  # fmt: skip
    piped = [printed(*form) for form in forms]
    assert json.loads(piped[0])
    monkeypatch.setenv("COLUMNS", "40")
    assert [printed(*form) for form in forms] == piped


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals of this kind")
def test_a_terminal_is_asked_for_its_width(tmp_path: Path) -> None:
    import fcntl
    import struct
    import termios

    write(tmp_path / ("x" * 90) / "a", 0)
    write(tmp_path / ("x" * 90) / "b", 0)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 72, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_geo.__file__).parents[1])}
    command = [sys.executable, "-m", "lightning_geo.cli.main", "show", str(tmp_path / ("x" * 90) / "a")]
    subprocess.run(command, env=environment, stdout=follower, check=True)
    lines = os.read(leader, 10_000).decode().split("\r\n")
    assert max(map(cell_len, lines)) == 72
    os.close(leader)
    os.close(follower)
