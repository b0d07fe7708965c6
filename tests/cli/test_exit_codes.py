"""The exit code of every command, as the guide documents it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lightning_geo
from lightning_geo.cli import show
from lightning_geo.cli.main import main
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from support.records import write

POLICY = "policy: P\nowner: O\nlimits:\n- {name: l, metric: entropy, at_most: LIMIT}\n"

CASES = [
    ("show well", 0), ("show well other", 0), ("show nowhere", 2), ("show", 2), ("show well --wide", 2),
    ("diagnose well", 0), ("diagnose collapsed", 1), ("diagnose nowhere", 2), ("diagnose .", 2),
    ("diagnose well --rules nowhere", 2),
    ("audit well --policy good.yaml", 0), ("audit well --policy strict.yaml", 1),
    ("audit well --policy nowhere", 2), ("audit well", 2),
    ("audit verify nowhere", 2), ("audit verify empty", 1),
    ("compare well other", 0), ("compare well other --fail-above entropy=100", 0),
    ("compare well other --fail-above entropy=0.0001", 1), ("compare well other --fail-above entropy=x", 2),
    ("compare well other --metric nothing", 2), ("compare well", 2), ("compare well larger", 2),
    ("compare --group well other --group well other", 0), ("compare --group well", 2),
    ("report well -o page.html", 0), ("report well -o nowhere/page.html", 2), ("report nowhere", 2),
    ("tail nowhere", 2),
    ("heads well", 0), ("heads well --fraction 2", 2), ("heads collapsed", 2), ("heads .", 2),
    ("explain nowhere --text a --target 0", 2), ("explain well --text a --target 0", 2),
    ("explain well --text a", 2),
    ("", 2), ("frobnicate", 2), ("--version", 0), ("--help", 0),
]  # fmt: skip


def fill(folder: Path) -> None:
    for seed, name in enumerate(("well", "other")):
        write(folder / name, 0, 50, seed=seed, metrics=["entropy", "redundancy"])
    write(folder / "larger", 0, 50, layers=4)
    sink = RecordFile(folder / "collapsed", "geometry")
    for step, value in enumerate((0.7, 0.7, 0.01, 0.01)):
        values = np.full((2, 4), value, np.float32)
        sink.write(GeometryRecord({"encoder": {"normalized_entropy": values}}, step=step))
    sink.close()
    (folder / "good.yaml").write_text(POLICY.replace("LIMIT", "100"))
    (folder / "strict.yaml").write_text(POLICY.replace("LIMIT", "0.001"))
    (folder / "empty").touch()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    fill(folder)
    return folder


@pytest.mark.parametrize(("line", "code"), CASES)
def test_exit_code(
    files: Path, line: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    try:
        found = main(line.split())
    except SystemExit as stopped:  # argparse's own
        found = int(stopped.code or 0)
    out, err = capsys.readouterr()
    assert found == code, err
    assert (out == "") == (code == 2)
    assert bool(err) == (code == 2 or ("fail-above" in line and code == 1))


def test_ctrl_c_is_130(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "read_runs", stopped)
    assert main(["show", str(files / "well")]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
@pytest.mark.parametrize(("name", "code"), [("collapsed", 1), ("well", 0)])
def test_a_reader_that_has_gone_does_not_pass_a_check(files: Path, name: str, code: int) -> None:
    command = [sys.executable, "-m", "lightning_geo.cli.main", "diagnose", str(files / name)]
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_geo.__file__).parents[1])}
    # `true` has closed its end long before the command prints
    script = 'set -o pipefail; { sleep 0.1; "$@"; } | true'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, "")
