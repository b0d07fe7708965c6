"""Runs read back: after crashes, restarts and damage, next to the event files of others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from lightning_geo import GeometryHistory, GeometryRecord, load_history
from lightning_geo.loggers import open_sinks
from lightning_geo.metrics.spec import ROLES
from lightning_geo.storage.events import (
    Dropped,
    dropped_event,
    file_version,
    record_event,
    session_event,
)
from lightning_geo.storage.record_file import RecordFile
from lightning_geo.storage.tfrecord import frame
from support.records import assert_same, make_record

SMALL = ["entropy", "drift.query"]


def write_session(directory: Path, steps: Any, resumed_at: int | None = None, **kwargs: Any) -> Path:
    """One session of a run; ``seed`` tells sessions apart."""
    before = set(directory.glob("*")) if directory.exists() else set()
    sink = RecordFile(directory, kwargs.pop("name", "geometry"), resumed_at=resumed_at)
    for step in steps:
        sink.write(make_record(step, **{"metrics": SMALL, **kwargs}))
    sink.close()
    (file,) = set(directory.glob("*")) - before
    return file


def seeds(history: GeometryHistory) -> list[int]:
    """Which session each sample is from."""

    def session(step: int, values: Any) -> int:
        made = (make_record(step, metrics=SMALL, seed=seed)["entropy"] for seed in range(10))
        return next(seed for seed, entropy in enumerate(made) if np.array_equal(entropy, values))

    return [session(int(s), values) for s, values in zip(history.steps, history["entropy"], strict=True)]


# -- what a history is


def test_arrays_are_over_samples_and_equal_the_records(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    records = [make_record(step, layers=4, heads=3) for step in (0, 50, 120)]
    for record in records:
        sink.write(record)
    history = load_history(tmp_path)
    assert (history.name, history.path, len(history)) == ("geometry", str(tmp_path), 3)
    assert history.steps.dtype == np.int64
    assert history.steps.tolist() == [0, 50, 120]
    assert list(history) == history.keys() == records[0].keys()
    for key in history:
        assert key in history
        assert history[key].dtype == np.float32
        np.testing.assert_array_equal(history[key], [record[key] for record in records])
    assert history["effective_rank"].shape == (3, 4, 3, len(ROLES))
    np.testing.assert_array_equal(history["effective_rank"], [record["effective_rank"] for record in records])
    assert history["cone"].shape == (3, 4, 3)
    assert history.metadata["epoch"].tolist() == [0, 0, 1]
    assert history.metadata["batches_seen"].tolist() == [1, 51, 121]
    assert history.metadata["wall_time"].tolist() == [record.wall_time for record in records]
    assert history.metadata["cost_seconds"].shape == (3,)
    assert set(history.metadata["probe_fingerprint"]) == {"cafe"}
    assert history.model == records[-1].model
    assert_same(history.record(-1), records[-1])
    assert "geometry" in repr(history)
    assert "steps 0 to 120" in repr(history)


def test_several_stacks_are_asked_for_by_name(tmp_path: Path) -> None:
    write_session(tmp_path, [0, 50], stacks=("encoder", "decoder.cross"))
    history = load_history(tmp_path)
    assert history["decoder.cross/entropy"].shape == (2, 2, 3)
    assert not np.array_equal(history["decoder.cross/entropy"], history["encoder/entropy"])
    assert "entropy" not in history
    with pytest.raises(KeyError, match="several stacks"):
        history["entropy"]


def test_what_a_sample_lacks_is_nan() -> None:
    first, second = (
        make_record(0, metrics=["entropy"]),
        make_record(50, metrics=["attention_distance", "entropy"]),
    )
    history = GeometryHistory([first, second])
    assert history.keys() == ["entropy", "attention_distance"]
    assert np.isnan(history["attention_distance"][0]).all()
    np.testing.assert_array_equal(history["attention_distance"][1], second["attention_distance"])
    assert np.isfinite(history["entropy"]).all()


def test_models_of_different_size_are_padded() -> None:
    sizes = {0: (2, 3), 50: (3, 2)}
    records = [make_record(s, layers=n, heads=h, metrics=["entropy"]) for s, (n, h) in sizes.items()]
    history = GeometryHistory(records)
    assert history["entropy"].shape == (2, 3, 3)
    for values, record in zip(history["entropy"], records, strict=True):
        layers, heads = record["entropy"].shape
        np.testing.assert_array_equal(values[:layers, :heads], record["entropy"])
        assert np.isfinite(values).sum() == layers * heads


def test_matrices_are_kept_by_step(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    bases = {step: np.full((2, 3, 8, 4), step, np.float16) for step in (0, 100)}
    for step in (0, 50, 100):
        record = make_record(step, metrics=SMALL)
        record.matrices = {"encoder": {"basis.query": bases[step]}} if step in bases else {}
        sink.write(record)
    history = load_history(tmp_path)
    found = history.matrices("basis.query")
    assert list(found) == [0, 100]
    for step, basis in found.items():
        np.testing.assert_array_equal(basis, bases[step])
        assert basis.dtype == np.float16
    with pytest.raises(KeyError, match=r"basis\.key"):
        history.matrices("basis.key")


def test_without_matrices_the_error_says_so() -> None:
    with pytest.raises(KeyError, match="no sample of this run kept any"):
        GeometryHistory([make_record()]).matrices("basis.query")


def test_a_history_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        GeometryHistory([])


# -- runs that were restarted


def test_killed_at_160_resumed_at_100_stopped_at_120(tmp_path: Path) -> None:
    write_session(tmp_path, range(0, 161, 20), seed=1)
    write_session(tmp_path, [100, 120], resumed_at=100, seed=2)
    history = load_history(tmp_path)
    assert history.steps.tolist() == [0, 20, 40, 60, 80, 100, 120]
    assert seeds(history) == [1] * 5 + [2] * 2


def test_a_session_that_starts_between_samples_drops_what_comes_after_it(tmp_path: Path) -> None:
    write_session(tmp_path, range(0, 161, 20), seed=1)
    write_session(tmp_path, [140], resumed_at=110, seed=2)
    history = load_history(tmp_path)
    assert history.steps.tolist() == [0, 20, 40, 60, 80, 100, 140]
    assert seeds(history) == [1] * 6 + [2]


def test_a_fresh_run_in_a_used_directory_replaces_the_old_one(tmp_path: Path) -> None:
    write_session(tmp_path, range(0, 161, 20), seed=1)
    write_session(tmp_path, [0, 20], seed=2)
    history = load_history(tmp_path)
    assert (history.steps.tolist(), seeds(history)) == ([0, 20], [2, 2])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=1, max_size=4))
def test_any_history_of_restarts_has_each_step_once_from_the_session_that_reached_it_last(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[tuple[int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("run")
    expected: dict[int, int] = {}
    for seed, (start, samples) in enumerate(sessions):
        start = min(start, len(expected))  # a checkpoint of what there was
        steps = [20 * (start + n) for n in range(samples)]
        write_session(directory, steps, resumed_at=20 * start if seed else None, seed=seed)
        expected = {step: session for step, session in expected.items() if step < 20 * start}
        expected.update(dict.fromkeys(steps, seed))
    history = load_history(directory)
    assert dict(zip(history.steps.tolist(), seeds(history), strict=True)) == expected


def test_a_session_of_one_monitor_voids_no_sample_of_another(tmp_path: Path) -> None:
    write_session(tmp_path, [0, 50, 100])
    write_session(tmp_path, [0, 50, 100], name="other")
    write_session(tmp_path, [100], resumed_at=50, seed=1)
    assert load_history(tmp_path, "geometry").steps.tolist() == [0, 100]
    assert load_history(tmp_path, "other").steps.tolist() == [0, 50, 100]


def test_tensorboards_purge_voids_samples_too(tmp_path: Path) -> None:
    write_session(tmp_path, [0, 50, 100])
    writer = SummaryWriter(str(tmp_path), purge_step=60)
    writer.close()
    assert load_history(tmp_path).steps.tolist() == [0, 50]


def test_sessions_of_one_second_are_read_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    # file names hold whole seconds, then host and process, which may sort the other way
    for host, seed, resumed_at in (("zebra", 1, None), ("ant", 2, 100)):
        events = [file_version(), record_event(make_record(100, metrics=SMALL, seed=seed), "geometry")]
        if resumed_at is not None:
            events.insert(1, session_event(resumed_at, "geometry"))
        content = b"".join(frame(event.SerializeToString()) for event in events)
        (tmp_path / f"events.out.tfevents.1700000000.{host}.1.0").write_bytes(content)
    assert seeds(load_history(tmp_path)) == [2]


# -- files of others


def test_event_files_and_events_of_others_are_passed_over(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, version="run")
    logger.log_hyperparams({"lr": 1e-3}, {"hp_metric": 1.0})
    (sink,) = open_sinks([logger])
    for step in (0, 50):
        sink.write(make_record(step, metrics=SMALL))
        logger.log_metrics({"train_loss": 1.0}, step=step)
        logger.experiment.add_histogram("weights", np.arange(10.0), step)
        logger.experiment.add_text("note", "lightning_geo/geometry/record", step)
    logger.finalize("success")
    with SummaryWriter(logger.log_dir) as other:  # such as evaluation in another process
        other.add_scalar("accuracy", 0.5, 10_000)
    (Path(logger.log_dir) / "lightning_geo.txt").write_text("no event file")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = load_history(logger.log_dir)
    assert history.steps.tolist() == [0, 50]
    for sample, step in enumerate((0, 50)):
        assert_same(history.record(sample), make_record(step, metrics=SMALL))


def test_one_event_file_can_be_read_alone(tmp_path: Path) -> None:
    first = write_session(tmp_path, [0, 20, 40], seed=1)
    write_session(tmp_path, [0], seed=2)
    assert load_history(first).steps.tolist() == [0, 20, 40]


def test_monitors_are_told_apart_by_name(tmp_path: Path) -> None:
    write_session(tmp_path, [0, 50], name="probe")
    write_session(tmp_path, [0, 70], name="train")
    assert load_history(tmp_path, "probe").steps.tolist() == [0, 50]
    assert load_history(tmp_path, name="train").steps.tolist() == [0, 70]
    with pytest.raises(ValueError, match=r"`name` .* \['probe', 'train'\], but got None"):
        load_history(tmp_path)
    with pytest.raises(ValueError, match=r"`name` .* \['probe', 'train'\], but got 'val'"):
        load_history(tmp_path, "val")


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


def test_a_run_that_was_wholly_replaced_by_a_start_is_no_run(tmp_path: Path) -> None:
    write_session(tmp_path, [20])
    content = b"".join(
        frame(event.SerializeToString()) for event in (file_version(), session_event(0, "geometry"))
    )
    (tmp_path / "events.out.tfevents.9999999999.z").write_bytes(content)
    with pytest.raises(ValueError, match="GeometryMonitor"):
        load_history(tmp_path)


def test_a_record_is_mapped_by_name() -> None:
    history = GeometryHistory([GeometryRecord({"encoder": {"entropy": np.ones((1, 2), np.float32)}})])
    assert {key: history[key].shape for key in history} == {"entropy": (1, 1, 2)}


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
