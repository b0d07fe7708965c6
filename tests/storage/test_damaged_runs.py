"""Runs read back that are damaged, not there, or without samples."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from lightning_geo import GeometryHistory, GeometryRecord, load_history
from lightning_geo.storage.events import Dropped, dropped_event, file_version, record_event
from lightning_geo.storage.record_file import RecordFile
from lightning_geo.storage.tfrecord import frame
from support.record_sessions import SMALL, write_session
from support.records import make_record

# -- what is damaged or not there


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A file of three samples and where its events end."""
    path = write_session(tmp_path_factory.mktemp("three"), [0, 20, 40])
    samples = (record_event(make_record(step, metrics=SMALL), "geometry") for step in (0, 20, 40))
    events = [file_version(), *samples]
    ends = np.cumsum([len(frame(event.SerializeToString())) for event in events]).tolist()
    assert ends[-1] == path.stat().st_size
    return path, ends


@given(data=st.data())
def test_a_run_killed_while_writing_gives_all_samples_before(
    three: tuple[Path, list[int]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, ends = three
    cut = data.draw(st.integers(ends[1], ends[-1]))
    copy = tmp_path_factory.mktemp("cut") / path.name
    copy.write_bytes(path.read_bytes()[:cut])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = load_history(copy.parent)
    assert history.steps.tolist() == [20 * n for n in range(sum(end <= cut for end in ends[1:]))]
    assert [str(copy) in str(w.message) and "half-written last event" in str(w.message) for w in caught] == (
        [] if cut in ends else [True]
    )


@given(data=st.data())
def test_a_damaged_sample_in_the_middle_costs_itself_alone(
    three: tuple[Path, list[int]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, ends = three
    place = data.draw(st.integers(ends[1], ends[2] - 1))
    content = bytearray(path.read_bytes())
    content[place] ^= data.draw(st.integers(1, 255))
    copy = tmp_path_factory.mktemp("damaged") / path.name
    copy.write_bytes(content)
    said = rf"skipped {ends[2] - ends[1]} bytes at offset {ends[1]} \(damaged event"
    with pytest.warns(UserWarning, match=said):
        assert load_history(copy.parent).steps.tolist() == [0, 40]


def test_a_foreign_record_costs_itself_alone(tmp_path: Path) -> None:
    foreign = record_event(make_record(20, metrics=SMALL), "geometry")
    foreign.summary.value[0].tensor.string_val[0] = b'{"format": 1, "name": "geometry", "step": null}'
    (tmp_path / "events.out.tfevents.1").write_bytes(frame(foreign.SerializeToString()))
    with (
        pytest.raises(ValueError, match=r"hold no readable summary.*its step is 'None'"),
        pytest.warns(UserWarning, match="skipped a sample"),
    ):
        load_history(tmp_path)
    write_session(tmp_path, [0, 40])
    with pytest.warns(UserWarning, match="skipped a sample"):
        assert load_history(tmp_path).steps.tolist() == [0, 40]


def test_samples_that_do_not_fit_together_are_refused_before_memory_is_taken() -> None:
    wide, tall = np.ones((1, 10_000), np.float32), np.ones((10_000, 1), np.float32)
    records = [
        GeometryRecord({"encoder": {"entropy": array}}, step=s) for s, array in enumerate((wide, tall))
    ]
    with pytest.raises(ValueError, match=r"one model.*\[1, 10000\] and \[10000, 1\]"):
        GeometryHistory(records)
    records[1].stacks["encoder"]["entropy"] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="same axes"):
        GeometryHistory(records)


def test_links_out_of_the_run_are_passed_over(tmp_path: Path) -> None:
    write_session(tmp_path / "other", [0, 10])
    write_session(tmp_path / "mine", [0, 20])
    (tmp_path / "mine" / "events.out.tfevents.9999999999").symlink_to(next((tmp_path / "other").iterdir()))
    (tmp_path / "named").symlink_to(tmp_path / "mine")
    for path in ("mine", "named"):
        with pytest.warns(UserWarning, match="links to a file outside the run's directory"):
            assert load_history(tmp_path / path).steps.tolist() == [0, 20]


def test_many_damages_are_one_warning(tmp_path: Path) -> None:
    garbage = frame(b"\xff" * 40)  # intact, but no event
    (tmp_path / "events.out.tfevents.1").write_bytes(garbage * 9)
    write_session(tmp_path, [0])
    with pytest.warns(UserWarning, match="not a TensorBoard event.*and 4 more") as caught:
        assert len(load_history(tmp_path)) == 1
    assert len(caught) == 1


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`path`.*nowhere' does not exist"):
        load_history(tmp_path / "nowhere")


def test_an_empty_directory_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`path`.*is empty"):
        load_history(tmp_path)


def test_a_directory_without_event_files_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"`path`.*tfevents.*holds metrics\.csv"):
        load_history(tmp_path)


def test_a_directory_of_runs_lists_them(tmp_path: Path) -> None:
    for version in ("version_0", "version_1"):
        write_session(tmp_path / "lightning_logs" / version, [0])
    with pytest.raises(FileNotFoundError, match=r"one run.*version_0, .*version_1"):
        load_history(tmp_path)


def test_a_run_without_a_monitor_says_what_it_has(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("train_loss", 1.0, 0)
    with pytest.raises(ValueError, match=r"but its 1 event file.*only tags such as train_loss"):
        load_history(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not an event file at all"])
def test_a_file_of_garbage_has_no_readable_summary(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="hold no readable summary"):
            load_history(tmp_path)


# -- runs without samples


def test_a_sample_after_dropped_ones_makes_the_run_one_like_others(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    sink.note(Dropped("geometry", 1, "no memory"), 0)
    sink.write(make_record(50, metrics=SMALL))
    sink.note(Dropped("other", 3, "no heads"), 60)
    assert load_history(tmp_path).steps.tolist() == [50]
    with pytest.raises(ValueError, match="'other' dropped 3 of 3 samples: no heads"):
        load_history(tmp_path, "other")
    with pytest.raises(ValueError, match="one of the run's monitors"):
        load_history(tmp_path, "third")


def test_of_several_monitors_that_dropped_all_each_gives_its_reason(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    sink.note(Dropped("a", 1, "first"), 0)
    sink.note(Dropped("b", 2, "second"), 0)
    with pytest.raises(ValueError, match=r"'a' dropped 1 of 1 samples: first.*'b' .* 2 samples: second"):
        load_history(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"null", b'{"monitor": "a", "samples": "many", "reason": ""}']
)
def test_a_damaged_mark_of_dropped_samples_is_skipped(tmp_path: Path, content: bytes) -> None:
    event = dropped_event(Dropped("geometry", 1, "why"), 0)
    event.summary.value[0].tensor.string_val[0] = content
    sink = RecordFile(tmp_path, "geometry")
    sink.write(make_record(50, metrics=SMALL))
    sink._append(event)
    with pytest.warns(UserWarning, match="skipped a sample"):
        assert load_history(tmp_path).steps.tolist() == [50]
