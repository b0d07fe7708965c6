"""Runs read back: arrays over samples, next to the event files of others."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from lightning_geo import GeometryHistory, GeometryRecord, load_history
from lightning_geo.loggers import open_sinks
from lightning_geo.metrics.spec import ROLES
from lightning_geo.storage.record_file import RecordFile
from support.record_sessions import SMALL, write_session
from support.records import assert_same, make_record

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


def test_a_record_is_mapped_by_name() -> None:
    history = GeometryHistory([GeometryRecord({"encoder": {"entropy": np.ones((1, 2), np.float32)}})])
    assert {key: history[key].shape for key in history} == {"entropy": (1, 1, 2)}
