"""Which sinks a run gets, and that it gets exactly one record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger

from lightning_geo import load_history
from lightning_geo.loggers import open_sinks
from support.records import make_record


def kinds(sinks: list[Any]) -> list[str]:
    return [type(sink).__name__ for sink in sinks]


def write_all(sinks: list[Any], steps: tuple[int, ...] = (0, 50)) -> None:
    for step in steps:
        for sink in sinks:
            sink.write(make_record(step, metrics=["entropy"]), final=step == steps[-1])
    for sink in sinks:
        sink.close()


def event_files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*tfevents*"))


def test_without_a_logger_the_record_is_in_the_directory(tmp_path: Path) -> None:
    sinks = open_sinks([], directory=lambda: tmp_path / "records")
    assert kinds(sinks) == ["RecordFile"]
    assert sinks[0].where == f"record: {tmp_path / 'records'}"
    write_all(sinks)
    assert load_history(tmp_path / "records").steps.tolist() == [0, 50]


def test_without_a_logger_and_a_directory_there_is_nothing() -> None:
    assert open_sinks([]) == []


def test_a_loggers_own_directory_comes_before_the_given_one(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    sinks = open_sinks([logger], directory=lambda: tmp_path / "records")
    assert kinds(sinks) == ["ScalarSink", "RecordFile"]
    write_all(sinks)
    assert not (tmp_path / "records").exists()
    assert load_history(logger.log_dir).steps.tolist() == [0, 50]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_tensorboard_holds_the_record_whatever_the_order(tmp_path: Path, order: list[int]) -> None:
    loggers = [TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")]
    sinks = open_sinks([loggers[n] for n in order], directory=lambda: tmp_path / "records")
    assert sorted(kinds(sinks)) == ["ScalarSink", "TensorBoardSink"]
    write_all(sinks)
    assert {file.parent for file in event_files(tmp_path)} == {Path(loggers[0].log_dir)}
    assert load_history(loggers[0].log_dir).steps.tolist() == [0, 50]


def test_fast_dev_runs_logger_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # its experiment has every attribute that one asks it for
    monkeypatch.chdir(tmp_path)
    sinks = open_sinks([DummyLogger()])
    assert kinds(sinks) == ["ScalarSink"]
    write_all(sinks)
    assert list(tmp_path.iterdir()) == []


def test_a_logger_whose_experiment_fails_stops_no_other(tmp_path: Path) -> None:
    class Broken(CSVLogger):
        @property
        def experiment(self) -> Any:
            raise ConnectionError("no such server")

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            _ = self.experiment

    broken, good = open_sinks([Broken(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")])
    with pytest.raises(ConnectionError, match="no such server"):
        broken.write(make_record())
    good.write(make_record())
    assert len(load_history(event_files(tmp_path)[0].parent)) == 1


def test_two_monitors_keep_their_records_apart(tmp_path: Path) -> None:
    write_all(open_sinks([], name="probe", directory=lambda: tmp_path), (0, 50, 100))
    write_all(open_sinks([], name="train", directory=lambda: tmp_path), (0, 70))
    assert load_history(tmp_path, "probe").steps.tolist() == [0, 50, 100]
    assert load_history(tmp_path, "train").steps.tolist() == [0, 70]
