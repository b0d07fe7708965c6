"""Sessions of synthetic records, told apart by their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lightning_geo import GeometryHistory
from lightning_geo.storage.record_file import RecordFile
from support.records import make_record

SMALL = ["entropy", "drift.query"]


def write_session(directory: Path, steps: Any, resumed_at: int | None = None, **kwargs: Any) -> Path:
    """One session of a run; ``seed`` tells sessions apart."""
    before = set(directory.glob("*")) if directory.exists() else set()
    sink = RecordFile(directory, kwargs.pop("name", "geometry"), resumed_at=resumed_at)
    for step in steps:
        sink.write(make_record(step, **{"metrics": SMALL, **kwargs}))
    sink.close()
    (file,) = set(directory.glob("*")) - before
    return file


def seeds(history: GeometryHistory) -> list[int]:
    """Which session each sample is from."""

    def session(step: int, values: Any) -> int:
        made = (make_record(step, metrics=SMALL, seed=seed)["entropy"] for seed in range(10))
        return next(seed for seed, entropy in enumerate(made) if np.array_equal(entropy, values))

    return [session(int(s), values) for s, values in zip(history.steps, history["entropy"], strict=True)]
