"""Samples as they arrive, however the file grows."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.storage.events import Dropped
from lightning_geo.storage.follow import Follower
from lightning_geo.storage.record_file import RecordFile
from lightning_geo.storage.tfrecord import frame
from support.records import make_record


def content(directory: Path, steps: list[int], resumed_at: int | None = None) -> bytes:
    sink = RecordFile(directory, "geometry", resumed_at=resumed_at)
    for step in steps:
        sink.write(make_record(step, metrics=["entropy"]))
    sink.close()
    [file] = directory.iterdir()
    data = file.read_bytes()
    file.unlink()
    return data


def steps_of(follower: Follower) -> list[int | str]:
    return [news.text if news.record is None else news.record.step for news in follower.poll()]


@given(cuts=st.lists(st.floats(0, 1), max_size=6))
def test_each_sample_arrives_once_however_the_file_grows(
    tmp_path_factory: st.SearchStrategy[Path], cuts: list[float]
) -> None:
    directory = tmp_path_factory.mktemp("run")  # type: ignore[attr-defined]
    data = content(directory, [0, 10, 20])
    follower, found = Follower(directory), []
    for cut in [*sorted(cuts), 1.0]:
        (directory / "events.out.tfevents.1").write_bytes(data[: int(cut * len(data))])
        found += steps_of(follower)
    assert found == [0, 10, 20]
    assert steps_of(follower) == []


def test_a_run_that_has_not_begun_has_no_news(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    assert steps_of(follower) == []
    (tmp_path / "events.out.tfevents.1").write_bytes(content(tmp_path, [0]))
    assert steps_of(follower) == [0]


def test_a_new_session_is_said(tmp_path: Path) -> None:
    first, second = content(tmp_path, [0, 10, 20]), content(tmp_path, [10], resumed_at=10)
    follower = Follower(tmp_path)
    (tmp_path / "events.out.tfevents.1").write_bytes(first)
    assert steps_of(follower) == [0, 10, 20]
    (tmp_path / "events.out.tfevents.2").write_bytes(second)
    said, step = steps_of(follower)
    assert "resumed at step 10" in str(said)
    assert step == 10


def test_damage_costs_itself_alone(tmp_path: Path) -> None:
    data = content(tmp_path, [0])
    file = tmp_path / "events.out.tfevents.1"
    follower = Follower(tmp_path)
    file.write_bytes(data + b"damage" * 9)
    assert steps_of(follower) == [0]  # it may be an event that is being written
    file.write_bytes(data + b"damage" * 9 + content(tmp_path.parent / "other", [10]))
    said, step = steps_of(follower)
    assert "skipped 54 bytes" in str(said)
    assert step == 10
    with file.open("ab") as end:
        end.write(frame(b"\xff" * 40))
    [said] = steps_of(follower)
    assert "skipped an event" in str(said)


def test_dropped_samples_are_said(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    sink.note(Dropped("geometry", 1, "no heads"), 0)
    [said] = steps_of(Follower(tmp_path))
    assert said == "GeometryMonitor 'geometry' dropped 1 of 1 samples: no heads"
