"""The report's first chapter: which runs these are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_geo.analysis.runs import Run, describe_model
from lightning_geo.report.rendering import Table
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import moment

__all__ = ["run_metadata"]


def run_metadata(runs: Sequence[Run]) -> Table:
    """Return a table with a row per fact and a column per run."""
    rows: list[tuple[str, list[str]]] = [
        ("model", [describe_model(run.history) for run in runs]),
        ("samples", [_span(run.history) for run in runs]),
        ("epochs", [f"{_field(run, 'epoch', 0)} to {_field(run, 'epoch')}" for run in runs]),
        ("training batches", [_field(run, "batches_seen") for run in runs]),
        (
            "probe",
            [_field(run, "probe_fingerprint") or "none (measured on training batches)" for run in runs],
        ),
        ("recorded", [_when(run.history) for run in runs]),
        ("time per sample", [_cost(run.history) for run in runs]),
    ]
    return Table(("run", *(run.name for run in runs)), [(name, *values) for name, values in rows])


def _field(run: Run, field: str, sample: int = -1) -> str:
    return str(run.history.metadata[field][sample])


def _span(history: GeometryHistory) -> str:
    return f"{len(history)}, steps {history.steps[0]} to {history.steps[-1]}"


def _when(history: GeometryHistory) -> str:
    first, last = (float(t) for t in history.metadata["wall_time"][[0, -1]])
    return f"{moment(first)}, over {(last - first) / 60:.0f} min"


def _cost(history: GeometryHistory) -> str:
    return f"{np.median(history.metadata['cost_seconds']):.2f} s (median)"
