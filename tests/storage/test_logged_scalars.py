"""Scalars beside the record: what stands after a resume, by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger
from torch.utils.tensorboard import SummaryWriter

from lightning_geo.storage.record_file import RecordFile
from lightning_geo.storage.scalars import read_scalars
from support.records import make_record


def write(folder: Path, points: dict[str, list[tuple[int, float]]], purge: int | None = None) -> None:
    before = set(folder.glob("events.*"))
    writer = SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".{purge}")
    for tag, of_tag in points.items():
        for step, value in of_tag:
            writer.add_scalar(tag, value, step)
    writer.close()
    # as if begun a second after the others: TensorBoard reads files by name, and of one second the 100th
    # writer of a process before the 99th
    [file] = {*folder.glob("events.*")} - before
    file.rename(folder / f"events.out.tfevents.{1_700_000_000 + len(before)}.host.{purge}")


def recorded(folder: Path) -> None:
    sink = RecordFile(folder, "geometry")
    sink.write(make_record(0))
    sink.close()


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, {"train/loss": [(0, 3.0), (10, 2.0), (20, 1.0)], "lr": [(0, 0.1)]})
    write(tmp_path, {"train/loss": [(20, 1.5), (30, 0.5)]}, purge=15)
    found = read_scalars(tmp_path, "geometry")
    assert found["train/loss"].steps.tolist() == [0, 10, 20, 30]
    assert found["train/loss"].values.tolist() == [3.0, 2.0, 1.5, 0.5]
    theirs = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in theirs] == list(
        zip(*map(list, found["train/loss"]), strict=True)
    )


def test_numbers_that_only_a_csv_logger_wrote_are_read(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "", version="")
    recorded(tmp_path)
    logged = [
        ({"geometry/entropy": 1.0}, 0), ({"train/loss": 3.0, "lr": 0.1}, 0), ({"train/loss": 2.0}, 10),
        ({"val/acc": 0.5}, 10), ({"train/loss": float("nan"), "note": "a text"}, 20),
    ]  # fmt: skip
    for values, step in logged:
        logger.log_metrics(values, step)
    logger.save()
    found = read_scalars(tmp_path, "geometry")
    assert sorted(found) == ["lr", "train/loss", "val/acc"]
    assert found["train/loss"].steps.tolist() == [0, 10, 20]
    np.testing.assert_array_equal(found["train/loss"].values, [3.0, 2.0, np.nan])
    assert [of_tag.tolist() for of_tag in found["val/acc"]] == [[10], [0.5]]
    assert sorted(read_scalars(next(tmp_path.glob("*tfevents*")), "geometry")) == sorted(found)


def test_a_tag_of_both_loggers_is_that_of_the_event_file(tmp_path: Path) -> None:
    write(tmp_path, {"loss": [(0, 3.0)]})
    (tmp_path / "metrics.csv").write_text("step,loss,accuracy\n0,9.0,0.5\n")
    found = read_scalars(tmp_path, "geometry")
    assert (found["loss"].values.tolist(), found["accuracy"].values.tolist()) == ([3.0], [0.5])


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    """The last number of a line without an end may lack digits."""
    recorded(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,loss\n0,2.5\n10,1")
    [(tag, scalars)] = read_scalars(tmp_path, "geometry").items()
    assert (tag, scalars.steps.tolist()) == ("loss", [0])


@pytest.mark.parametrize("text", ["", "\n", "loss\n1.0\n", "step,loss\n", "step,loss\nx,1.0\n,2.0\n"])
def test_a_file_of_that_name_without_numbers_by_step_has_none(text: str, tmp_path: Path) -> None:
    recorded(tmp_path)
    (tmp_path / "metrics.csv").write_text(text)
    assert read_scalars(tmp_path, "geometry") == {}


def test_the_monitors_own_are_left_out_and_nan_is_kept(tmp_path: Path) -> None:
    recorded(tmp_path)
    write(tmp_path, {"loss": [(0, float("inf")), (1, 2.0)], "geometry/entropy": [(0, 1.0)]})
    [(tag, scalars)] = read_scalars(tmp_path, "geometry").items()
    assert tag == "loss"
    np.testing.assert_array_equal(scalars.values, [np.nan, 2.0])
