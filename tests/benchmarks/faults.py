"""How early and how reliably faults of training are found: ``python tests/benchmarks/faults.py``.

Eight faults begin at step 200 of 300, each with twenty seeds, beside sixty healthy runs; every step is a
sample. An alarm is a finding of :func:`lightning_geo.diagnose` that is a warning or critical. The first alarm
after a fault began finds it; one before, or in a healthy run, is a false alarm. The lead is counted to the
first of three rules on the loss: the trend rule of the findings, six standard deviations over 128 steps, ten
times the best loss so far.

The limits of the built-in rules were set on the even seeds; the figures are those of the odd ones, which are
all that is trained by default. Another monitor can be measured on the same runs: DIR has the loss and
TensorBoard's event file of each.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fault_runs import FAULT_AT, FAULTS, Case, cases, train

from lightning_geo import load_history
from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.detector import Detector
from lightning_geo.analysis.findings.evaluation import evaluation_of
from lightning_geo.storage.record import GeometryRecord


class Outcome(NamedTuple):
    """What was found in one run.

    Args:
        case: The run.
        alarms: (step, rule) of each finding that is a warning or critical, when it became one.
        on_loss: First step at which each rule on the loss holds; ``None`` for never.
    """

    case: Case
    alarms: list[tuple[int, str]]
    on_loss: dict[str, int | None]

    @property
    def found(self) -> tuple[int, str] | None:
        """The first finding since the fault."""
        return next((alarm for alarm in self.alarms if alarm[0] > FAULT_AT), None)

    @property
    def false_alarms(self) -> list[tuple[int, str]]:
        """Findings of a healthy run, or from before the fault."""
        healthy = self.case.fault == "healthy"
        return [alarm for alarm in self.alarms if healthy or alarm[0] <= FAULT_AT]


def outcome(case: Case, directory: Path) -> Outcome:
    """Look for findings in a run's record, and for alarms on its loss."""
    folder = directory / case.folder
    history = load_history(folder)
    detector = Detector()
    alarms: dict[tuple[object, ...], tuple[int, str]] = {}
    for sample in range(len(history)):
        record = history.record(sample)
        for finding in detector.update(record):
            if finding.severity != "note":
                alarms.setdefault((*finding.key, finding.since_step), (record.step, finding.rule))
    return Outcome(case, list(alarms.values()), on_loss(np.load(folder / "loss.npy")))


def on_loss(loss: np.ndarray) -> dict[str, int | None]:
    """First step from the fault on at which each of three rules on the loss holds."""
    trend = evaluation_of(replace(RULES["departure"], metrics=("hidden_norm",)))  # a number of each layer
    steps: dict[str, int | None] = dict.fromkeys(("trend", "six deviations", "ten times the best"))
    for step, value in enumerate(loss):
        arrays = {"hidden_norm": np.array([value])}
        shown = trend.update(GeometryRecord({"loss": arrays}, step=step), "loss", arrays)
        past = loss[max(0, step - 128) : step]
        holds = {
            "trend": shown is not None and shown.cells.any(),
            "six deviations": step >= 128 and value > past.mean() + 6 * past.std(),
            "ten times the best": step > 0 and value > 10 * loss[:step].min(),
        }
        for name, held in holds.items():
            if held and step >= FAULT_AT and steps[name] is None:
                steps[name] = step
    return steps


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| fault | model | found | by | step (median) | on the loss (median) | lead (median) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fault, model in FAULTS.items():
        runs = [run for run in outcomes if run.case.fault == fault]
        if not runs:
            continue
        found = [run.found for run in runs]
        rules = Counter(alarm[1] for alarm in found if alarm is not None).most_common(3)
        steps = [np.inf if alarm is None else alarm[0] for alarm in found]
        losses = [min((s for s in run.on_loss.values() if s is not None), default=np.inf) for run in runs]
        leads = [
            loss - step if np.isfinite(step) else -np.inf for step, loss in zip(steps, losses, strict=True)
        ]
        cells = (
            fault, model, f"{sum(a is not None for a in found)} of {len(runs)}",
            ", ".join(f"{rule} {count}" for rule, count in rules) or "-",
            _number(np.median(steps)), _number(np.median(losses)), _number(np.median(leads)),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    false = [(run.case.folder, alarm) for run in outcomes for alarm in run.false_alarms]
    healthy = sum(run.case.fault == "healthy" for run in outcomes)
    alarmed = {folder for folder, _ in false if "/healthy/" in folder}
    before = {folder for folder, _ in false if "/healthy/" not in folder}
    lines += [
        "",
        f"False alarms: in {len(alarmed)} of {healthy} healthy runs; before the fault in {len(before)} of "
        f"{len(outcomes) - healthy} others.",
        *(f"- {folder}: {rule} at step {step}" for folder, (step, rule) in false[:20]),
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "never" if value > 0 else "not found"


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("fault_runs"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=20, help="of each fault (default: %(default)s)")
    parser.add_argument("--healthy", type=int, default=30, help="of each model (default: %(default)s)")
    parser.add_argument("--model", choices=("decoder", "bert"), help="only the runs of one model")
    parser.add_argument("--half", choices=("even", "odd", "both"), default="odd", help="which of the seeds")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    runs = [
        case
        for case in cases(options.seeds, options.healthy)
        if options.model in (None, case.model)
        and (options.half == "both" or case.seed % 2 == (options.half == "odd"))
    ]
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        list(pool.map(partial(train, directory=options.output), runs))
        print(table(list(pool.map(partial(outcome, directory=options.output), runs))))


if __name__ == "__main__":
    main()
