"""Writes records to Weights & Biases: one row of the run's history per sample, at most 20 panels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_geo.loggers.alerts import title
from lightning_geo.loggers.layer_course import LayerCourse
from lightning_geo.loggers.picture_scale import PictureScales
from lightning_geo.loggers.pictures import PictureSchedule, padded, pictures
from lightning_geo.loggers.tags import Level, layer_range, scalars
from lightning_geo.loggers.wandb_heads import heads_table
from lightning_geo.storage.finding import Finding, latest
from lightning_geo.storage.places import size_of
from lightning_geo.storage.record import GeometryRecord

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["WandbSink"]

_STEP = "trainer/global_step"  # the axis that Lightning's WandbLogger uses
_ALERTS_APART = 300  # seconds between two alerts of one title
_READ = 200_000_000  # bytes: a larger record would keep the run waiting for its report


class WandbSink:
    """Scalars and pictures in one call of ``run.log`` per sample, over Lightning's step axis.

    W&B makes a panel of every key that is not hidden: the key metrics (``geometry/<metric>``), the pictures
    together under two keys (``geometry/layer_by_head``, ``geometry/layer_by_step``), and at the end a table
    of heads (``geometry/heads``) and a report (``geometry/report``). The keys of layers are hidden: they make
    no panels of their own, but the charts of ``lightning-geo wandb-view`` use them.

    The summary, shown in W&B's table of runs, holds the last, lowest and highest value of each of these model
    numbers, and its change since the start of the run as ``geometry_change/<metric>``. The run's config holds
    ``geometry.*``: what is measured, how often, and on what.

    Args:
        experiment: A ``wandb.Run``.
        name: The monitor's name.
        level: Finest scalars.
        schedule: Which samples get pictures.
        resumed: Whether the run began before this session.
        scales: Of the run's pictures.
        measured: Stored names that the run measures; ``None`` where that is not known.
        config: The monitor's entry in the run's config.
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
        measured: Collection[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._scales = PictureScales() if scales is None else scales
        self._experiment = experiment
        self._name, self._level, self._measured = name, level, measured
        self._config = config
        self._schedule = schedule
        self._resumed = resumed
        self._defined: set[str] = set()
        self._start: dict[str, float] = {}
        self._course = LayerCourse(name, measured, self._scales)
        self._findings: list[Finding] = []
        self._last: GeometryRecord | None = None
        self.where = f"W&B: {experiment.url or experiment.dir}"

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Log one sample."""
        first, self._last = self._last is None, record
        model = scalars(record, self._name, "model", self._measured)
        finer = scalars(record, self._name, self._level, self._measured)
        row: dict[str, Any] = layer_range(record, self._name, self._measured) | finer
        self._define(row, model)
        row[_STEP] = record.step
        try:
            if first:
                self._begin(record)
            self._course.add(record)
            self._findings = latest([*self._findings, *record.findings])
            if self._schedule.due(record.step, final=final):
                row.update(self._pictures(record))
        finally:  # numbers are logged even if all else fails
            self._experiment.log(row)
        self._experiment.summary.update(self._changes(model))
        for finding in record.findings:
            if finding.until_step is None:
                self._alert(finding)

    def _begin(self, record: GeometryRecord) -> None:
        """Go on from the samples of an earlier session, and describe the monitor in the config."""
        if self._resumed:
            for earlier in self._earlier(record.step):
                self._start = self._start or scalars(earlier, self._name, "model", self._measured)
                self._course.add(earlier)
                self._findings = latest([*self._findings, *earlier.findings])
        if self._config is not None:
            there, key = self._experiment.config.get(self._name, {}), self._name
            if not isinstance(there, Mapping):  # the user's own, which stays
                there, key = {}, f"{self._name}_monitor"
            facts = {**there, **self._config, **_facts(record)}
            self._experiment.config.update({key: facts}, allow_val_change=True)

    def _earlier(self, step: int) -> Iterable[GeometryRecord]:
        from lightning_geo.storage.history import load_history

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the report repeats warnings about damage
                history = load_history(self.record_at or "", self._name)
        except (OSError, ValueError):  # on another machine; changes then count from this session's start
            return []
        records = (history.record(sample) for sample in range(len(history)))
        return [record for record in records if record.step < step]

    def _alert(self, finding: Finding) -> None:
        text = f"Since step {finding.since_step}: {finding.message}"
        text += f"\nNext: {' '.join(finding.next)}" if finding.next else ""
        level = {"note": "INFO", "warning": "WARN", "critical": "ERROR"}[finding.severity]
        self._experiment.alert(title(finding), text, level, _ALERTS_APART)

    def _changes(self, model: dict[str, float]) -> dict[str, float]:
        for tag, value in model.items():
            self._start.setdefault(tag, value)
        changes = f"{self._name}_change"
        return {
            f"{changes}{tag.removeprefix(self._name)}": value - self._start[tag]
            for tag, value in model.items()
        }

    def _pictures(self, record: GeometryRecord) -> dict[str, Any]:
        by_head = {
            f"{tag.partition('/')[2]}, step {record.step}": picture
            for tag, picture in pictures(record, self._name, self._scales)
        }
        shown = {"layer_by_head": by_head, "layer_by_step": dict(self._course.pictures())}
        return {f"{self._name}/{key}": _gallery(images) for key, images in shown.items() if images}

    def _define(self, row: dict[str, Any], models: Collection[str]) -> None:
        # Lightning defines this axis for runs that it opens, but not for a run that the user opened
        if not self._defined:
            self._experiment.define_metric(_STEP)
            self._experiment.define_metric(f"{_escaped(self._name)}*", step_metric=_STEP)
        for tag in row.keys() - self._defined:
            options = {"summary": "last,min,max"} if tag in models else {"hidden": True}
            self._experiment.define_metric(_escaped(tag), step_metric=_STEP, **options)
        self._defined.update(row)

    def close(self) -> None:
        """Log the table of heads and the report; the run stays open, because it belongs to the logger."""
        if self._last is None or self._experiment.disabled:
            return
        import wandb

        row: dict[str, Any] = {_STEP: self._last.step}
        columns, rows = heads_table(self._last, self._findings, self._measured)
        if rows:
            row[f"{self._name}/heads"] = wandb.Table(columns=[*columns], data=rows)
        try:
            row.update(self._report())
        finally:  # the table does not depend on the report
            if len(row) > 1:
                self._experiment.log(row)

    def _report(self) -> dict[str, Any]:
        """The report, where the record is at hand and not too large."""
        if self.record_at is None or not os.path.isdir(self.record_at):
            return {}  # TensorBoard's directory is on another machine
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
                stacklevel=3,
            )
            return {}
        history = load_history(where, self._name)
        run = str(self._experiment.name or self._experiment.id)
        page = wandb.Html(report([Run(run, where, history)]), inject=False, data_is_not_path=True)
        return {f"{self._name}/report": page}


def _facts(record: GeometryRecord) -> dict[str, Any]:
    """Facts about the model and the probe, from a sample."""
    stacks = record.model.get("stacks", {})
    layout = {
        stack: {"layers": len(facts.get("heads", [])), "heads": max(facts.get("heads", []), default=0)}
        for stack, facts in stacks.items()
    }
    return {
        "model": record.model.get("class", ""),
        "layout": layout,
        "probe_fingerprint": record.probe_fingerprint,
    }


def _gallery(images: Mapping[str, Image]) -> list[Any]:
    """The pictures of one panel by caption, in one size: W&B shows all in that of the first."""
    import wandb

    return [
        wandb.Image(image, caption=caption)
        for caption, image in zip(images, padded(images.values()), strict=True)
    ]


def _escaped(tag: str) -> str:
    return tag.replace(".", r"\.")
