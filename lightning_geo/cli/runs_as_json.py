"""Converts runs and rows to JSON-serialisable values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lightning_geo.analysis.runs import Run

__all__ = ["as_object", "finite", "run_metadata"]


def as_object(row: NamedTuple) -> dict[str, Any]:
    """Return a row as JSON-serialisable values."""
    return {key: finite(value) for key, value in row._asdict().items()}


def run_metadata(run: Run) -> dict[str, Any]:
    """Return a run's name, path, model, steps and probe as JSON-serialisable values."""
    history = run.history
    return {
        "name": run.name,
        "path": str(run.path),
        "model": history.model.get("class"),
        "samples": len(history),
        "steps": [int(history.steps[0]), int(history.steps[-1])],
        "probe_fingerprint": str(history.metadata["probe_fingerprint"][-1]),
    }


def finite(value: Any) -> Any:
    """Return None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
