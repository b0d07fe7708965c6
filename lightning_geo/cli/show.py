"""``lightning-geo show``: what a run holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_geo.analysis.findings.diagnosis import diagnose
from lightning_geo.analysis.gate_changes import head_gates, lasting_changes
from lightning_geo.analysis.runs import Run, describe_model, metric_series, own_metrics
from lightning_geo.cli.command import RUN, add_command, own_metrics_text, put, read_runs
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import moment, number, some
from lightning_geo.utils.tables import table, terminal_width, wrapped

__all__ = ["add_parser", "as_text"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "show", _run, "describe one run, or list several")
    parser.add_argument("runs", nargs="+", metavar="RUN", help=RUN)


def _run(options: argparse.Namespace) -> int:
    put(as_text(read_runs(options.runs, options.monitor)))
    return 0


def as_text(runs: Sequence[Run]) -> str:
    """Return one run in full, or a line for each of several."""
    if len(runs) > 1:
        rows = [_line(run) for run in runs]
        return table(
            ("run", "model", "samples", "steps", "probe", "recorded"),
            rows,
            left=("run", "model"),
            least={"run": 20, "model": 20},
            drop=(("probe",), ("recorded",), ("model",)),
            width=terminal_width(),
        )
    [run] = runs
    own = own_metrics_text(series.spec for series in own_metrics(run.history))
    return "\n\n".join([_verdict(run), _metadata(run), _metrics(run.history), *own])


def _verdict(run: Run) -> str:
    diagnosis, width = diagnose(run.history), terminal_width()
    lines = [wrapped(diagnosis.verdict, width)]
    if any(finding.until_step is None for finding in diagnosis.findings):
        lines.append(wrapped("lightning-geo diagnose says where, since when and what to do.", width))
    return "\n".join(lines)


def _line(run: Run) -> tuple[str, ...]:
    history = run.history
    steps = f"{history.steps[0]} to {history.steps[-1]}"
    return (
        run.name,
        describe_model(history),
        str(len(history)),
        steps,
        _probe(history),
        _when(history),
    )


def _probe(history: GeometryHistory) -> str:
    """Return the probe's fingerprint, or ``batches`` where samples were taken on training batches."""
    return str(history.metadata["probe_fingerprint"][-1]) or "batches"


def _when(history: GeometryHistory) -> str:
    """Return the time of the last sample."""
    return moment(float(history.metadata["wall_time"][-1]))


def _metadata(run: Run) -> str:
    history, metadata = run.history, run.history.metadata
    gaps = np.diff(history.steps)
    every = f", every {int(np.median(gaps))} steps" if len(gaps) else ""
    kept = [r.step for r in (history.record(i) for i in range(len(history))) if r.matrices]
    lines = [
        ("run", run.name),
        ("path", run.path),
        ("monitor", history.name),
        ("model", describe_model(history)),
        ("samples", f"{len(history)}: steps {history.steps[0]} to {history.steps[-1]}{every}"),
        (
            "epochs",
            f"{metadata['epoch'][0]} to {metadata['epoch'][-1]}, "
            f"{metadata['batches_seen'][-1]} training batches",
        ),
        (
            "probe",
            f"{_probe(history)}"
            + ("" if len(set(metadata["probe_fingerprint"])) == 1 else " (changed during the run)"),
        ),
        ("recorded", f"{_when(history)}, {np.median(metadata['cost_seconds']):.2f} s per sample (median)"),
        *_coverage(history),
        ("bases", f"stored at steps {', '.join(map(str, kept))}" if kept else "not stored"),
    ]
    for gates in head_gates(history):
        last, changed = gates.counts(-1), {(c.layer, c.head) for c in lasting_changes(gates)}
        where = f"{gates.stack}: " if len(history.stacks) > 1 else ""
        counts = ", ".join(f"{count} {name}" for name, count in last.items())
        lines.append(
            ("gates", f"{where}{counts}; {len(changed)} of {sum(last.values())} heads changed their gate")
        )
    width, indent = terminal_width(), " " * 9
    return "\n".join(wrapped(value, width, first=f"{name:8} ", rest=indent) for name, value in lines)


def _coverage(history: GeometryHistory) -> list[tuple[str, str]]:
    """Name the attention calls that the last sample does not cover, if any."""
    last = history.record(-1)
    if not last.coverage_share < 1:
        return []
    left_out = last.coverage.get("left_out")
    reasons = left_out.items() if isinstance(left_out, dict) else ()
    lines = [f"{last.coverage_share:.0%} of attention calls measured at the last sample"]
    lines += [
        f"not measured in {some(modules)}: {reason}"
        for reason, modules in reasons
        if isinstance(modules, list)
    ]
    return [("coverage" if not number else "", line) for number, line in enumerate(lines)]


def _metrics(history: GeometryHistory) -> str:
    rows = []
    for series in metric_series(history):
        model = series.model()
        unit = "" if series.spec.unit == "1" else series.spec.unit
        axes = " × ".join(series.spec.axes)
        rows.append((series.key, series.spec.family, axes, number(model[0]), number(model[-1]), unit))
    width = terminal_width()
    title = "Metrics at the first and the last sample, as model mean (max_logit: maximum):"
    cells = table(
        ("metric", "family", "axes", "first", "last", "unit"),
        rows,
        left=("metric", "family", "axes"),
        least={"metric": 24},
        drop=(("axes",), ("family",)),
        width=width,
    )
    return f"{wrapped(title, width)}\n{cells}"
