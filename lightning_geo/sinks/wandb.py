"""Records to Weights & Biases: one row of the run's history per sample."""

from __future__ import annotations

from typing import Any

from lightning_geo.schema import GeometryRecord
from lightning_geo.sinks.pictures import PictureSchedule, pictures
from lightning_geo.sinks.tags import Level, scalars

__all__ = ["WandbSink"]

_STEP = "trainer/global_step"  # the axis that Lightning's WandbLogger uses


class WandbSink:
    """Scalars and pictures in one call of ``run.log`` per sample, over Lightning's step axis.

    Args:
        experiment: A ``wandb.Run``.
        name: The monitor's name.
        level: Finest scalars.
        schedule: Which samples get pictures.
    """

    def __init__(self, experiment: Any, name: str, level: Level, schedule: PictureSchedule) -> None:
        self._experiment = experiment
        self._name = name
        self._level = level
        self._schedule = schedule
        self._defined: set[str] = set()
        self.where = f"W&B: {experiment.url or experiment.dir}"

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Log one sample."""
        row: dict[str, Any] = dict(scalars(record, self._name, self._level))
        self._define(row)
        row[_STEP] = record.step
        try:
            if self._schedule.due(record.step, final=final):
                row.update(self._pictures(record))
        finally:  # pictures that fail cost no numbers
            self._experiment.log(row)

    def _pictures(self, record: GeometryRecord) -> dict[str, Any]:
        import wandb

        return {
            tag: wandb.Image(picture.convert("RGB"), caption=f"step {record.step}")
            for tag, picture in pictures(record, self._name)
        }

    def _define(self, row: dict[str, Any]) -> None:
        # a run that the user opened does not have the axis that Lightning gives to its own
        if not self._defined:
            self._experiment.define_metric(_STEP)
            self._experiment.define_metric(f"{_escaped(self._name)}*", step_metric=_STEP)
        for tag in row.keys() - self._defined:
            if "." in tag:  # a pattern does not reach them: W&B takes an unescaped dot for nesting
                self._experiment.define_metric(_escaped(tag), step_metric=_STEP)
        self._defined.update(row)

    def close(self) -> None:
        """Leave the run open: it belongs to the logger."""


def _escaped(tag: str) -> str:
    return tag.replace(".", r"\.")
