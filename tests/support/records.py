"""Synthetic records: every metric of the catalog, values within its range."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.selection import select, spec_of
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile


def values_of(metric: str, layers: int, heads: int, seed: int) -> NDArray[np.float32]:
    """Random values of one stored metric, in its range."""
    spec = spec_of(metric)
    low = spec.range[0] if spec.range[0] is not None else -5.0
    high = spec.range[1] if spec.range[1] is not None else low + 10.0
    generator = np.random.default_rng([seed, zlib.crc32(metric.encode())])
    shape = (layers, heads)[: len(spec.axes)]
    return generator.uniform(low, high, shape).astype(np.float32)


def make_record(
    step: int = 0,
    *,
    layers: int = 2,
    heads: int = 3,
    stacks: Iterable[str] = ("encoder",),
    metrics: Iterable[str] | None = None,
    seed: int = 0,
    **metadata: Any,
) -> GeometryRecord:
    """A record whose values depend on step, seed, stack and metric."""
    names = select() if metrics is None else list(metrics)
    defaults = {
        "epoch": step // 100,
        "batches_seen": step + 1,
        "wall_time": 1.7e9 + step,
        "probe_fingerprint": "cafe",
    }
    modules = {s: {"modules": [f"{s}.{i}" for i in range(layers)], "heads": [heads] * layers} for s in stacks}
    return GeometryRecord(
        {
            stack: {name: values_of(name, layers, heads, 1000 * step + 10 * seed + place) for name in names}
            for place, stack in enumerate(stacks)
        },
        {"class": "Tiny", "stacks": modules},
        step=step,
        **{**defaults, **metadata},
    )


def assert_same(ours: GeometryRecord, theirs: GeometryRecord) -> None:
    """Both hold the same, bit for bit."""
    assert ours.metadata() == theirs.metadata()
    patterns = [{stack: own.arrays() for stack, own in one.patterns.items()} for one in (ours, theirs)]
    for mine, other in ((ours.stacks, theirs.stacks), (ours.matrices, theirs.matrices), patterns):
        assert {s: list(a) for s, a in mine.items()} == {s: list(a) for s, a in other.items()}
        for stack, arrays in mine.items():
            for metric, values in arrays.items():
                assert values.dtype == other[stack][metric].dtype
                np.testing.assert_array_equal(values, other[stack][metric])


def write(directory: Path, *steps: int, name: str = "geometry", **kwargs: object) -> Path:
    """A run with a record."""
    sink = RecordFile(directory, name)
    for step in steps or (0, 50):
        sink.write(make_record(step, **{"metrics": ["entropy"], **kwargs}))  # type: ignore[arg-type]
    sink.close()
    return directory


def run_of(values: dict[str, list[object]], every: int = 10) -> GeometryHistory:
    """A run from the values of each metric at each sample."""
    count = len(next(iter(values.values())))
    return GeometryHistory(
        [
            GeometryRecord(
                {"encoder": {name: np.array(of[sample], np.float32) for name, of in values.items()}},
                step=every * sample,
            )
            for sample in range(count)
        ]
    )
