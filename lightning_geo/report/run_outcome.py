"""The report's first chapter: what came of each run, and when what happened."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lightning_geo.analysis.runs import Run
from lightning_geo.report.charts import Curve, Event, timeline
from lightning_geo.report.rendering import Table
from lightning_geo.storage.diagnosis import Diagnosis
from lightning_geo.storage.event_files import wandb_logs
from lightning_geo.storage.run_curves import suggested
from lightning_geo.storage.scalars import Scalars, read_scalars
from lightning_geo.utils.formatting import number

__all__ = ["Outcome", "run_outcome"]


class Outcome(NamedTuple):
    """What came of the runs.

    Args:
        sentence: Of a single run: its last score and loss; empty where it logged none.
        table: Of several: the same, a row for each; ``None`` for one run.
        picture: Loss with findings and evaluations; empty without a loss.
        note: Why something is missing; empty where nothing is.
    """

    sentence: str
    table: Table | None
    picture: Markup
    note: str


class _Curves(NamedTuple):
    """A run's loss and score, each with its tag."""

    loss: tuple[str, Scalars] | None
    score: tuple[str, Scalars] | None


def run_outcome(runs: Sequence[Run], diagnoses: Sequence[Diagnosis]) -> Outcome:
    """Return what the chapter shows.

    Args:
        runs: All runs of the report.
        diagnoses: One for each run.
    """
    curves = [_curves(run) for run in runs]
    drawn: list[Curve] = []
    evaluations: list[tuple[int, NDArray[np.int64], NDArray[np.float64], str]] = []
    events: list[Event] = []
    for place, (run, of_run, diagnosis) in enumerate(zip(runs, curves, diagnoses, strict=True)):
        if of_run.loss is None:
            continue
        if of_run.score is not None:
            tag, score = of_run.score
            evaluations.append((len(drawn), score.steps, score.values, tag))
        events += _events(diagnosis, "ABCDEF"[place] if len(runs) > 1 and place < 6 else "")
        drawn.append((run.name, *of_run.loss[1]))
    tags = dict.fromkeys(of_run.loss[0] for of_run in curves if of_run.loss is not None)
    marks = ["findings (dashed)"] * bool(events) + ["evaluations (circles)"] * bool(evaluations)
    title = ", ".join(tags) + (f", with {' and '.join(marks)}" if marks else "")
    several = len(runs) > 1
    return Outcome(
        "" if several else _sentence(curves[0]),
        _table(runs, curves) if several and any(of_run != (None, None) for of_run in curves) else None,
        timeline(drawn, title, events, evaluations),
        _note(runs, curves),
    )


def _curves(run: Run) -> _Curves:
    scalars: dict[str, Scalars] = {}
    if run.history.path:  # it was made in memory otherwise
        with contextlib.suppress(OSError, ValueError):  # moved or removed since
            scalars = read_scalars(run.path, run.history.name)
    known = {tag: of_tag for tag, of_tag in scalars.items() if np.isfinite(of_tag.values).any()}
    tags = suggested(list(known))
    loss, score = tags["loss"], tags["score"]
    return _Curves((loss, known[loss]) if loss else None, (score, known[score]) if score else None)


def _note(runs: Sequence[Run], curves: Sequence[_Curves]) -> str:
    """Say of each run without a loss where it is not, and where it may be."""
    notes = []
    for run, of_run in zip(runs, curves, strict=True):
        if of_run.loss is not None:
            continue
        note = "The loss is not in the run's event files, nor in a metrics.csv beside them."
        logs = wandb_logs(run.path) if run.history.path else []
        if logs:
            note += f" What was logged to W&B is in {logs[0].name}, which W&B alone reads: "
            note += "its workspace shows the loss."
        notes.append(f"{run.name}: {note}" if len(runs) > 1 else note)
    return " ".join(notes)


def _events(diagnosis: Diagnosis, prefix: str) -> list[Event]:
    return [
        Event(finding.since_step, f"{prefix}{place}", finding.severity)
        for place, finding in enumerate(diagnosis, start=1)
    ]


def _sentence(curves: _Curves) -> str:
    parts = [_last(*curve) for curve in (curves.score, curves.loss) if curve is not None]
    return f"{' · '.join(parts)}." if parts else ""


def _last(tag: str, scalars: Scalars) -> str:
    step, value = _known(scalars)
    return f"{tag} {number(value, digits=3)} at step {step}"


def _table(runs: Sequence[Run], curves: Sequence[_Curves]) -> Table:
    """A row for each run; scores come first, since they are what runs are compared by."""
    columns: dict[str, None] = {}
    for of_run in curves:
        columns |= dict.fromkeys(curve[0] for curve in (of_run.score, of_run.loss) if curve is not None)
    rows = []
    for run, of_run in zip(runs, curves, strict=True):
        values = {curve[0]: _known(curve[1]) for curve in of_run if curve is not None}
        cells = [
            f"{number(values[tag][1], digits=3)} (step {values[tag][0]})" if tag in values else "-"
            for tag in columns
        ]
        rows.append((run.name, *cells))
    return Table(("run", *(f"last {tag}" for tag in columns)), rows)


def _known(scalars: Scalars) -> tuple[int, float]:
    """Step and value of the last point that has one."""
    at: NDArray[np.intp] = np.flatnonzero(np.isfinite(scalars.values))
    return int(scalars.steps[at[-1]]), float(scalars.values[at[-1]])
