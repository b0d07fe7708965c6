"""Scalars beside the record: what stands after a resume, by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from lightning_geo.storage.record_file import RecordFile
from lightning_geo.storage.scalars import read_scalars
from support.records import make_record


def write(folder: Path, points: dict[str, list[tuple[int, float]]], purge: int | None = None) -> None:
    writer = SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".{purge}")
    for tag, of_tag in points.items():
        for step, value in of_tag:
            writer.add_scalar(tag, value, step)
    writer.close()


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


def test_the_monitors_own_are_left_out_and_nan_is_kept(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    sink.write(make_record(0))
    sink.close()
    write(tmp_path, {"loss": [(0, float("inf")), (1, 2.0)], "geometry/entropy": [(0, 1.0)]})
    [(tag, scalars)] = read_scalars(tmp_path, "geometry").items()
    assert tag == "loss"
    np.testing.assert_array_equal(scalars.values, [np.nan, 2.0])
