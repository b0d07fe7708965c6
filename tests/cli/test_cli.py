"""``lightning-geo`` as a shell runs it: what it prints, where, and its exit code."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lightning_geo
from lightning_geo import load_history
from lightning_geo.cli.main import main
from lightning_geo.storage.events import Dropped
from lightning_geo.storage.record_file import RecordFile
from support.records import make_record, write

Out = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs of one model."""
    for seed, name in enumerate(("a", "b", "c")):
        write(tmp_path / name / "version_0", 0, 50, seed=seed, metrics=None)
    return tmp_path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lightning_geo.cli.main", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(lightning_geo.__file__).parents[1])}


# -- a run without samples


@pytest.mark.parametrize("name", ["show", "compare", "report"])
def test_a_run_that_dropped_all_samples_is_not_said_to_have_had_no_monitor(
    name: str, tmp_path: Path, capsys: Out
) -> None:
    for run in ("a", "b"):
        sink = RecordFile(tmp_path / run, "geometry")
        for number in (1, 2):
            sink.note(Dropped("geometry", number, f"LookupError: no heads, time {number}"), 50 * number)
        sink.close()
    assert main([name, str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "GeometryMonitor 'geometry' dropped 2 of 2 samples: LookupError: no heads, time 2" in (
        capsys.readouterr().err
    )


def test_show_says_what_was_left_out(tmp_path: Path, capsys: Out) -> None:
    sink = RecordFile(tmp_path, "geometry")
    coverage = {"seen": 4, "measured": 3, "left_out": {"Its heads cannot be told.": ["layers.0", "layers.1"]}}
    sink.write(make_record(0, coverage=coverage))
    assert main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "coverage 75% of attention calls measured at the last sample" in out
    assert "not measured in layers.0, layers.1: Its heads cannot be told." in out
    sink.write(make_record(50, coverage={"seen": 4, "measured": 4, "left_out": {}}))
    assert main(["show", str(tmp_path)]) == 0
    assert "coverage" not in capsys.readouterr().out


# -- compare


def test_compare_says_what_differs_most(runs: Path, capsys: Out) -> None:
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "A  a/version_0: Tiny (encoder: 2 layers × 3 heads), steps 0 to 50" in out
    assert "2 common steps, 0 to 50. Compared at step 50." in out
    assert "Same probe" in out
    a, b = (load_history(runs / name / "version_0") for name in "ab")
    row = next(line.split() for line in out.splitlines() if line.startswith("attention_distance "))
    layer, head = int(row[1]), int(row[2])
    assert float(row[3]) == pytest.approx(a["attention_distance"][-1, layer, head], rel=1e-3)
    assert float(row[4]) == pytest.approx(b["attention_distance"][-1, layer, head], rel=1e-3)


def test_every_further_run_is_compared_with_the_first(runs: Path, capsys: Out) -> None:
    assert main(["compare", str(runs)]) == 0
    out = capsys.readouterr().out
    assert out.count("A  a/version_0") == 2
    assert "B  b/version_0" in out
    assert "B  c/version_0" in out


def test_json_is_all_that_is_printed(runs: Path, capsys: Out) -> None:
    file = next((runs / "b" / "version_0").iterdir())
    file.write_bytes(file.read_bytes() + b"garbage")
    assert main(["compare", str(runs / "a"), str(runs / "b"), "--json", "--metric", "metric:entropy"]) == 0
    out, err = capsys.readouterr()
    assert "skipped 7 bytes" in err
    found = json.loads(out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert found["reference"]["name"] == "a/version_0"
    [comparison] = found["comparisons"]
    assert len(comparison["differences"]) == 2 * 3
    for row in comparison["differences"]:
        assert row["difference"] == pytest.approx(row["b"] - row["a"])


def test_csv_is_all_that_is_printed(runs: Path, capsys: Out) -> None:
    assert main(["compare", str(runs), "--csv", "--metric", "metric:entropy"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 2 * 2 * 3
    assert {row["run_b"] for row in rows} == {"b/version_0", "c/version_0"}
    assert {row["metric"] for row in rows} == {"entropy"}


@pytest.mark.parametrize(("limit", "code"), [("entropy=100", 0), ("metric:entropy=0.001", 1)])
def test_fail_above_is_for_scripts(runs: Path, capsys: Out, limit: str, code: int) -> None:
    assert main(["compare", str(runs / "a"), str(runs / "b"), "--fail-above", limit]) == code
    out, err = capsys.readouterr()
    assert "Largest differences" in out
    assert ("differs by" in err) == bool(code)


def test_groups_are_compared_with_their_spread(runs: Path, capsys: Out) -> None:
    arguments = ["compare", "--group", str(runs / "a"), str(runs / "b"), "--group", str(runs / "c")]
    assert main([*arguments, "--metric", "entropy"]) == 0
    out = capsys.readouterr().out
    assert "A  2 runs: a/version_0, b/version_0" in out
    assert "chance" in out
    assert "treat the differences as hints" in out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["splits"] == 3
    assert main([*arguments, "--csv"]) == 0
    assert capsys.readouterr().out.startswith("group_a,group_b,step")
    assert main(["compare", "--group", str(runs)]) == 0
    assert "standard deviation over 3 runs" in capsys.readouterr().out


def bad(runs: Path) -> dict[str, tuple[list[str], str]]:
    a, b = str(runs / "a"), str(runs / "b")
    return {
        "nowhere": (["compare", a, str(runs / "x")], "does not exist"),
        "one": (["compare", a], "Only one run found"),
        "none": (["compare"], "Name two runs"),
        "metric": (["compare", a, b, "--metric", "entropie"], "Did you mean 'entropy'"),
        "limit on nothing": (["compare", a, b, "--fail-above", "sink=1"], "Did you mean"),
        "groups and runs": (["compare", a, "--group", b], "--group cannot be combined"),
        "single group": (["compare", "--group", a], "two runs or more"),
        "no report there": (["report", a, "-o", str(runs / "x" / "y.html")], "Cannot write"),
        "show nothing": (["show", str(runs / "x")], "does not exist"),
        "tail nothing": (["tail", str(runs / "x")], "does not exist"),
        "monitor": (["show", a, "--monitor", "other"], "['geometry'], but got 'other'"),
    }


@pytest.mark.parametrize("case", list(bad(Path())))
def test_bad_input_is_one_clear_line_and_exit_code_2(runs: Path, capsys: Out, case: str) -> None:
    arguments, said = bad(runs)[case]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


def test_an_unknown_name_lists_at_most_five_near_ones(runs: Path, capsys: Out) -> None:
    a, b = str(runs / "a"), str(runs / "b")
    for name in ("effective_rank.querry", "entropie", "zzz", ""):
        assert main(["compare", a, b, "--metric", name]) == 2
        err = capsys.readouterr().err
        assert len(err) < 300
        question = err.partition("Did you mean ")[2].partition("?")[0]
        assert 1 <= len(question.replace(" or ", ", ").split(", ")) <= 5
        assert "METRICS.md" in err  # all names


def test_different_models_say_what_was_found(runs: Path, capsys: Out) -> None:
    write(runs / "big", layers=12)
    assert main(["compare", str(runs / "a"), str(runs / "big")]) == 2
    assert "different models" in (err := capsys.readouterr().err)
    assert "2 layers × 3 heads" in err
    assert "12 layers × 3 heads" in err


def test_a_limit_that_is_no_number_is_bad_input(runs: Path, capsys: Out) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(runs), "--fail-above", "entropy"])
    assert stopped.value.code == 2
    assert "METRIC=VALUE" in capsys.readouterr().err


# -- show and report


def test_show_lists_runs_or_describes_one(runs: Path, capsys: Out) -> None:
    assert main(["show", str(runs)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["show", str(runs / "a")]) == 0
    out = capsys.readouterr().out
    assert "2: steps 0 to 50, every 50 steps" in out
    assert "Tiny (encoder: 2 layers × 3 heads)" in out
    summaries = load_history(runs / "a" / "version_0").record(-1).summaries()
    [line] = [line for line in out.splitlines() if line.startswith("max_logit ")]
    assert float(line.split()[-2]) == pytest.approx(summaries["max_logit"], rel=1e-3)


def test_report_writes_one_file(runs: Path, capsys: Out, tmp_path: Path) -> None:
    assert main(["report", str(runs), "-o", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.endswith(" kB\n")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.skipif(os.name == "nt", reason="file names of Windows cannot hold these")
def test_names_cannot_command_the_terminal(tmp_path: Path, capsys: Out) -> None:
    write(tmp_path / "a\x1b[2Jb" / "x")
    write(tmp_path / os.fsdecode(b"not-\xff-utf8") / "x")
    assert main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"a\x1b[2Jb/x" in out
    assert r"not-\udcff-utf8/x" in out


@pytest.mark.parametrize(
    "metadata",
    [{"wall_time": 1e300}, {"wall_time": float("nan")}, {"cost_seconds": float("inf")}, {"step": -(2**61)},
     {"epoch": 10**30}, {"model": {"class": 7, "stacks": {"encoder": {"heads": [-1, "x"]}}}},
     {"model": {"class": "m" * 100_000}}, {"probe_fingerprint": "\x1b[31m"}],
)  # fmt: skip
def test_metadata_that_makes_no_sense_breaks_no_command(tmp_path: Path, metadata: dict[str, object]) -> None:
    sink = RecordFile(tmp_path / "run", "geometry")
    for step in (0, 50):
        record = make_record(step, metrics=["entropy", "drift.output"])
        for name, value in metadata.items():
            setattr(record, name, value)
        sink.write(record)
    sink.close()
    path = str(tmp_path / "run")
    assert main(["show", path]) == 0
    assert main(["compare", path, path]) == 0
    assert main(["report", path, path, "-o", str(tmp_path / "r.html")]) == 0


# -- as a process


def test_the_command_runs_in_a_pipe_that_is_closed(runs: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "bash", *command("compare", runs, "--csv")],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("run_a,")
    assert done.stderr == ""


def test_a_terminal_of_ascii_is_enough(runs: Path) -> None:
    ascii_only = {**environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command("show", runs), env=ascii_only, capture_output=True, text=True, check=True)
    assert "2 layers ? 3 heads" in done.stdout


def test_tail_shows_samples_as_they_arrive_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    source = next(write(tmp_path / "whole", 0, 50, 100).iterdir()).read_bytes()
    live = tmp_path / "live"
    live.mkdir()
    process = subprocess.Popen(
        command("tail", live), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # tests that run in the background of a shell ignore ctrl-c, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().rstrip() == str(live)
    assert "waiting" in process.stdout.readline()
    cut = len(source) * 2 // 3 + 40  # in the midst of the last sample
    (live / "events.out.tfevents.1").write_bytes(source[:cut])
    header, *samples = (process.stdout.readline() for _ in range(3))
    assert header.split()[:2] == ["step", "epoch"]
    assert [int(line.split()[0]) for line in samples] == [0, 50]
    with (live / "events.out.tfevents.1").open("ab") as file:
        file.write(source[cut:])
    assert int(process.stdout.readline().split()[0]) == 100
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "\n", "")
