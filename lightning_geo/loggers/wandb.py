"""Writes records to Weights & Biases: one row of the run's history per sample."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from lightning_geo.loggers.alerts import title
from lightning_geo.loggers.picture_scale import PictureScales
from lightning_geo.loggers.pictures import PictureSchedule, pictures
from lightning_geo.loggers.tags import Level, scalars
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.places import size_of
from lightning_geo.storage.record import GeometryRecord

__all__ = ["WandbSink"]

_STEP = "trainer/global_step"  # the axis that Lightning's WandbLogger uses
_ALERTS_APART = 300  # seconds between two alerts of one title
_READ = 200_000_000  # bytes: a larger record would keep the run waiting for its report


class WandbSink:
    """Scalars and pictures in one call of ``run.log`` per sample, over Lightning's step axis.

    The summary, shown in W&B's table of runs, holds the last, lowest and highest value of each model number,
    and its change since the start of the run as ``geometry_change/<metric>``. At the end of the run a report
    is attached as ``geometry/report``.

    Args:
        experiment: A ``wandb.Run``.
        name: The monitor's name.
        level: Finest scalars.
        schedule: Which samples get pictures.
        resumed: Whether the run began before this session.
        scales: Of the run's pictures.
    """

    #: Directory of the run's record, from which the report is made; ``None`` for no report.
    record_at: str | os.PathLike[str] | None = None

    def __init__(
        self,
        experiment: Any,
        name: str,
        level: Level,
        schedule: PictureSchedule,
        *,
        resumed: bool = False,
        scales: PictureScales | None = None,
    ) -> None:
        self._scales = PictureScales() if scales is None else scales
        self._experiment = experiment
        self._name = name
        self._level = level
        self._schedule = schedule
        self._resumed = resumed
        self._defined: set[str] = set()
        self._start: dict[str, float] = {}
        self._last_step = -1
        self.where = f"W&B: {experiment.url or experiment.dir}"

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Log one sample."""
        row: dict[str, Any] = dict(scalars(record, self._name, self._level))
        model = record.summaries()
        self._define(row, {f"{self._name}/{key}" for key in model})
        row[_STEP] = record.step
        try:
            if self._schedule.due(record.step, final=final):
                row.update(self._pictures(record))
        finally:  # numbers are logged even if the pictures fail
            self._experiment.log(row)
            self._last_step = record.step
        self._experiment.summary.update(self._changes(model))
        for finding in record.findings:
            if finding.until_step is None:
                self._alert(finding)

    def _alert(self, finding: Finding) -> None:
        text = f"Since step {finding.since_step}: {finding.message}"
        text += f"\nNext: {' '.join(finding.next)}" if finding.next else ""
        level = {"note": "INFO", "warning": "WARN", "critical": "ERROR"}[finding.severity]
        self._experiment.alert(title(finding), text, level, _ALERTS_APART)

    def _changes(self, model: dict[str, float]) -> dict[str, float]:
        if self._resumed:  # the run started in an earlier session
            self._resumed = False
            self._start = self._first_sample()
        for key, value in model.items():
            self._start.setdefault(key, value)
        return {f"{self._name}_change/{key}": value - self._start[key] for key, value in model.items()}

    def _first_sample(self) -> dict[str, float]:
        from lightning_geo.storage.history import load_history

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the report repeats warnings about damage
                return load_history(self.record_at or "", self._name).record(0).summaries()
        except (OSError, ValueError):  # on another machine; changes then count from this session's start
            return {}

    def _pictures(self, record: GeometryRecord) -> dict[str, Any]:
        import wandb

        return {
            tag: wandb.Image(picture.convert("RGB"), caption=f"step {record.step}")
            for tag, picture in pictures(record, self._name, self._scales)
        }

    def _define(self, row: dict[str, Any], models: set[str]) -> None:
        # Lightning defines this axis for runs that it opens, but not for a run that the user opened
        if not self._defined:
            self._experiment.define_metric(_STEP)
            self._experiment.define_metric(f"{_escaped(self._name)}*", step_metric=_STEP)
        for tag in row.keys() - self._defined:
            if tag in models:
                summary = "last,min,max"
                self._experiment.define_metric(_escaped(tag), step_metric=_STEP, summary=summary)
            elif "." in tag:  # the pattern above misses these: W&B reads an unescaped dot as nesting
                self._experiment.define_metric(_escaped(tag), step_metric=_STEP)
        self._defined.update(row)

    def close(self) -> None:
        """Attach the report; the run stays open, because it belongs to the logger."""
        if self._last_step < 0 or self.record_at is None or not os.path.isdir(self.record_at):
            return  # a disabled run, or TensorBoard's directory is on another machine
        import wandb

        from lightning_geo.analysis.runs import Run
        from lightning_geo.report.page import report
        from lightning_geo.storage.event_files import event_files
        from lightning_geo.storage.history import load_history

        where = Path(self.record_at)
        size = sum(map(size_of, event_files(where)[0]))
        if size > _READ:
            warnings.warn(
                f"W&B gets no report: the record has {size / 1e6:,.0f} MB and takes a while to read. "
                f"Write it later with: lightning-geo report {where}",
                stacklevel=2,
            )
            return
        history = load_history(where, self._name)
        title = str(self._experiment.name or self._experiment.id)
        page = wandb.Html(report([Run(title, where, history)]), inject=False, data_is_not_path=True)
        self._experiment.log({f"{self._name}/report": page, _STEP: self._last_step})


def _escaped(tag: str) -> str:
    return tag.replace(".", r"\.")
