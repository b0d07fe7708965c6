"""What loggers hold: the user's own is that of the twin, and the monitor's is there too."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing import event_accumulator

from run_machine.loggers import Memory
from run_machine.runs import Run

__all__ = ["Finished", "logged", "users"]

_AXIS = "trainer/global_step"


def users(metrics: Any) -> dict[str, Any]:
    """Those that are not the monitor's."""
    return {name: value for name, value in metrics.items() if "geometry" not in name}


def logged(run: Run) -> dict[str, Any]:
    """What the loggers of an open run hold of the user's own."""
    found: dict[str, Any] = {}
    for index, logger in enumerate(run.trainer.loggers):
        if isinstance(logger, Memory):
            kept = [(step, users(metrics)) for step, metrics in logger.logged]
            found[str(index)] = [(step, metrics) for step, metrics in kept if metrics]
        elif isinstance(logger, TensorBoardLogger) and run.trainer.is_global_zero:
            if logger._experiment is not None:
                logger._experiment.flush()
            found["tensorboard"] = _board(Path(logger.log_dir))
    table = run.folder / "csv" / "version_0" / "metrics.csv"
    if table.exists():
        with table.open() as file:
            rows = [{k: v for k, v in users(row).items() if v} for row in csv.DictReader(file)]
        if mine := [row for row in rows if row.keys() - {"step", "epoch"}]:
            found["csv"] = mine
    return found


def _board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars as TensorBoard shows them: without what a session mark voids."""
    if not folder.exists():  # nothing was logged
        return {}
    sizes = {event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 1, event_accumulator.TENSORS: 1}
    events = event_accumulator.EventAccumulator(str(folder), size_guidance=sizes)
    events.Reload()
    tags = sorted(users(dict.fromkeys(events.Tags()["scalars"])))
    # sorted: files that were begun within a second are read in the order of their numbers' digits
    return {tag: sorted((event.step, event.value) for event in events.Scalars(tag)) for tag in tags}


@dataclass(frozen=True)
class Finished:
    """A run of W&B's that is over.

    Args:
        rows: Its history.
        users: The user's own: rows, summary, configuration and what is known of the metrics.
    """

    rows: list[dict[str, Any]]
    users: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """From the file that would be sent.

        Raises:
            AssertionError: If the user's and the monitor's are in one row.
        """
        from support.wandb_file import sent

        rows: list[dict[str, Any]] = []
        summary: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        metrics: dict[str, str] = {}
        for record in sent(folder):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                rows.append(_items(record.history.item))
            elif kind == "summary":
                summary |= _items(record.summary.update)
            elif kind in ("run", "config"):
                settings |= _items((record.run.config if kind == "run" else record.config).update)
            elif kind == "metric":
                metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        mine = [row for row in rows if len(users(row)) == len(row)]
        for row in rows:
            assert row in mine or users(row).keys() == {_AXIS}, f"a row of both: {row}"
        summary.pop(_AXIS, None)  # of the last row, whose ever it is
        own = {
            "rows": mine,
            "summary": {name: summary[name] for name in sorted(users(summary))},
            "config": users(settings),
            "metrics": users(metrics),
        }
        return cls(rows, own)

    def samples(self, name: str) -> dict[int, list[float | None]]:
        """By step, the entropies that a monitor logged there."""
        found: dict[int, list[float | None]] = {}
        for row in self.rows:
            # numbers alone: the table of heads and the report follow the last sample
            keys = [key for key in row if key.startswith(f"{name}/") and "\0" not in key]
            if keys:
                found.setdefault(row[_AXIS], []).append(row.get(f"{name}/entropy"))
        return found


def _items(items: Any) -> dict[str, Any]:
    """By key, without W&B's own."""
    found = {"\0".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return {key: found[key] for key in sorted(found) if not key.startswith("_")}  # in the file: any order
