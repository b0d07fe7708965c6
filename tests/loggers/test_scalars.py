"""Scalars through loggers of both Lightnings."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers
import pytest
import pytorch_lightning.loggers

from lightning_geo.loggers import open_sinks
from lightning_geo.loggers.tags import scalars
from support.records import make_record


@pytest.mark.parametrize("loggers", [lightning.pytorch.loggers, pytorch_lightning.loggers])
def test_csv_holds_every_number_of_every_sample(tmp_path: Path, loggers: Any) -> None:
    logger = loggers.CSVLogger(tmp_path)
    sink, _ = open_sinks([logger])
    assert sink.where == f"CSVLogger: {logger.log_dir}"
    records = [make_record(step) for step in (0, 50)]
    for record in records:
        sink.write(record)
    sink.close()
    logger.finalize("success")
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = [{tag: float(value) for tag, value in row.items()} for row in csv.DictReader(file)]
    assert rows == [{**scalars(record), "step": record.step} for record in records]


def test_the_loggers_error_is_raised(tmp_path: Path) -> None:
    class Broken(pytorch_lightning.loggers.CSVLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            raise ConnectionError("the server is down")

    sink, record = open_sinks([Broken(tmp_path)])
    with pytest.raises(ConnectionError, match="the server is down"):
        sink.write(make_record())
    record.write(make_record())  # the others go on
