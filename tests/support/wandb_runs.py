"""W&B runs of records, offline."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from lightning_geo.loggers import open_sinks
from lightning_geo.loggers.pictures import PictureSchedule
from support.records import make_record
from support.wandb_file import sent


def written(tmp_path: Path, steps: Iterable[int], resumed_at: int | None = None, **kwargs: Any) -> list[Any]:
    """Everything of a run with these samples, its sinks closed at the end as the monitor does."""
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True, id="same")
    sinks = open_sinks([logger], resumed_at=resumed_at, schedule=PictureSchedule(200))
    for step in steps:
        for sink in sinks:
            sink.write(make_record(step, **kwargs))
    for sink in sinks:
        sink.close()
    directory = Path(logger.experiment.dir)
    logger.experiment.finish()
    return sent(directory.parent)
