"""The record in a file of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from lightning_geo import load_history
from lightning_geo.storage.record_file import RecordFile
from support.records import assert_same, make_record


def test_each_sample_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path / "deep" / "er", "geometry")
    assert not (tmp_path / "deep").exists()  # nothing is made before there is something to write
    records = [make_record(step, metrics=["entropy"]) for step in (0, 50)]  # smaller than a buffer
    for count, record in enumerate(records, 1):
        sink.write(record)
        assert len(load_history(tmp_path / "deep" / "er")) == count
    for sample, record in enumerate(records):
        assert_same(load_history(tmp_path / "deep" / "er").record(sample), record)


def test_the_name_is_tensorboards_and_ours_and_tensorboard_reads_it(tmp_path: Path) -> None:
    for name in ("geometry", "train"):
        sink = RecordFile(tmp_path, name)
        sink.write(make_record(metrics=["entropy"]))
        sink.close()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert len(names) == 2
    assert all(n.startswith("events.out.tfevents.") and n.endswith(".lightning_geo") for n in names)
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"]
    kept = ("record", "encoder/entropy")
    assert set(tags) == {f"lightning_geo/{name}/{tag}" for name in ("geometry", "train") for tag in kept}


def test_a_resumed_run_drops_what_it_replaces(tmp_path: Path) -> None:
    for steps, resumed_at in ((range(0, 161, 20), None), ((100, 120), 100)):
        sink = RecordFile(tmp_path, "geometry", resumed_at=resumed_at)
        for step in steps:
            sink.write(make_record(step, metrics=["entropy"]))
        sink.close()
    assert load_history(tmp_path).steps.tolist() == list(range(0, 121, 20))


def test_a_relative_directory_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = RecordFile("here", "geometry")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    sink.write(make_record(metrics=["entropy"]))
    assert len(load_history(tmp_path / "here")) == 1


def test_the_file_is_announced_once_with_its_first_sample_in_it(tmp_path: Path) -> None:
    announced: list[tuple[Path, int]] = []

    def announce(path: Path) -> None:
        announced.append((path, len(load_history(path))))

    sink = RecordFile(tmp_path, "geometry", on_open=announce)
    for step in (0, 50):
        sink.write(make_record(step, metrics=["entropy"]))
    (file,) = tmp_path.iterdir()
    assert announced == [(file, 1)]


def test_a_full_disk_raises_and_the_run_is_readable_once_there_is_space(tmp_path: Path) -> None:
    # a limit on the size of files stands in for the disk, in a process of its own
    script = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from lightning_geo.storage.record_file import RecordFile
        from support.records import make_record
        sink = RecordFile({str(tmp_path)!r}, "geometry")
        for step in range(6):
            low, high = (90_000, resource.RLIM_INFINITY), (resource.RLIM_INFINITY,) * 2
            resource.setrlimit(resource.RLIMIT_FSIZE, low if step in (2, 3) else high)
            try:
                sink.write(make_record(step, layers=12, heads=12))
            except OSError as error:
                print(step, error.strerror)
        sink.close()
    """
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2 File too large", "3 File too large"]
    with pytest.warns(UserWarning, match="damaged event"):
        history = load_history(tmp_path)
    assert {0, 1, 4, 5} <= set(history.steps.tolist())
