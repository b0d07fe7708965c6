"""``lightning-geo show``: what is in a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_geo.analysis.gate_changes import head_gates, lasting_changes
from lightning_geo.analysis.runs import Run, describe_model, metric_series
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import moment, number, plain, some, table

__all__ = ["as_text"]


def as_text(runs: Sequence[Run]) -> str:
    """Return one run in full, or a line for each of several."""
    if len(runs) > 1:
        rows = [_line(run) for run in runs]
        return table(("run", "model", "samples", "steps", "probe", "taken"), rows, left=2)
    [run] = runs
    return f"{_facts(run)}\n\n{_metrics(run.history)}"


def _line(run: Run) -> tuple[str, ...]:
    history = run.history
    steps = f"{history.steps[0]} to {history.steps[-1]}"
    return (
        plain(run.name),
        plain(describe_model(history)),
        str(len(history)),
        steps,
        probe(history),
        when(history),
    )


def probe(history: GeometryHistory) -> str:
    """Return the fingerprint of what was measured on."""
    return plain(history.facts["probe"][-1]) or "batches"


def when(history: GeometryHistory) -> str:
    """Return the time of the last sample."""
    return moment(float(history.facts["wall_time"][-1]))


def _facts(run: Run) -> str:
    history, facts = run.history, run.history.facts
    gaps = np.diff(history.steps)
    every = f", every {int(np.median(gaps))} steps" if len(gaps) else ""
    kept = [r.step for r in (history.record(i) for i in range(len(history))) if r.matrices]
    lines = [
        ("run", run.name),
        ("path", run.path),
        ("monitor", history.name),
        ("model", describe_model(history)),
        ("samples", f"{len(history)}: steps {history.steps[0]} to {history.steps[-1]}{every}"),
        ("epochs", f"{facts['epoch'][0]} to {facts['epoch'][-1]}, {facts['batches_seen'][-1]} batches seen"),
        (
            "probe",
            f"{probe(history)}" + ("" if len(set(facts["probe"])) == 1 else " (it changed within the run)"),
        ),
        ("taken", f"{when(history)}, {np.median(facts['cost_seconds']):.2f} s a sample (median)"),
        *_coverage(history),
        ("bases", f"kept at steps {', '.join(map(str, kept))}" if kept else "none kept"),
    ]
    for gates in head_gates(history):
        last, changed = gates.counts(-1), {(c.layer, c.head) for c in lasting_changes(gates)}
        where = f"{gates.stack}: " if len(history.stacks) > 1 else ""
        counts = ", ".join(f"{count} {name}" for name, count in last.items())
        lines.append(
            ("gates", f"{where}{counts}; {len(changed)} of {sum(last.values())} heads changed theirs")
        )
    return "\n".join(f"{name:8} {plain(value)}" for name, value in lines)


def _coverage(history: GeometryHistory) -> list[tuple[str, str]]:
    """What the last sample left out, where it did."""
    last = history.record(-1)
    if not last.coverage_share < 1:
        return []
    left_out = last.coverage.get("left_out")
    reasons = left_out.items() if isinstance(left_out, dict) else ()
    lines = [f"{last.coverage_share:.0%} of attention calls measured at the last sample"]
    lines += [
        f"left out in {some(modules)}: {reason}" for reason, modules in reasons if isinstance(modules, list)
    ]
    return [("coverage" if not number else "", line) for number, line in enumerate(lines)]


def _metrics(history: GeometryHistory) -> str:
    rows = []
    for series in metric_series(history):
        model = series.model()
        unit = "" if series.spec.unit == "1" else series.spec.unit
        axes = " × ".join(series.spec.axes)
        rows.append((plain(series.key), series.spec.family, axes, number(model[0]), number(model[-1]), unit))
    title = "Metrics, model mean (largest for max_logit) at the first and the last sample:"
    return f"{title}\n{table(('metric', 'family', 'axes', 'first', 'last', 'unit'), rows, left=3)}"
