"""One hash of everything that a run's record holds."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from lightning_geo.metrics.foreign_specs import as_stored
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.record import GeometryRecord

__all__ = ["record_hash"]

#: Fields that a version adds to records must not change the hash of older ones.
_FIELDS = (
    "model",
    "step",
    "epoch",
    "batches_seen",
    "wall_time",
    "cost_seconds",
    "probe_fingerprint",
    "coverage",
    "looked_for",
)


def record_hash(history: GeometryHistory, samples: int | None = None) -> str:
    """Return the SHA-256 of a run's samples: every array bit by bit, and all metadata.

    It does not depend on how many files hold the samples, nor on anything else in these files.

    Args:
        history: The run, as read from its files.
        samples: How many of the first samples count; ``None`` for all.

    Example:
        >>> records = [GeometryRecord({"encoder": {"entropy": np.ones(2) * s}}, step=s) for s in (0, 9)]
        >>> longer, shorter = GeometryHistory(records), GeometryHistory(records[:1])
        >>> record_hash(longer, 1) == record_hash(shorter) != record_hash(longer)
        True
    """
    digest = hashlib.sha256()
    count = len(history) if samples is None else min(samples, len(history))
    _add(digest, _canonical({"format": 1, "monitor": history.name, "samples": count}))
    for index in range(count):
        _add_record(digest, history.record(index))
    return digest.hexdigest()


def _add_record(digest: Any, record: GeometryRecord) -> None:
    metadata = {field: getattr(record, field) for field in _FIELDS}
    metadata["specs"] = {name: as_stored(spec) for name, spec in record.specs.items()}
    metadata["findings"] = [finding.as_dict() for finding in record.findings]
    _add(digest, _canonical(metadata))
    patterns = {stack: own.arrays() for stack, own in record.patterns.items()}
    levels = (("stacks", record.stacks), ("matrices", record.matrices), ("patterns", patterns))
    arrays = [
        (level, stack, name, array)
        for level, stacks in levels
        for stack, by_name in stacks.items()
        for name, array in by_name.items()
    ]
    for level, stack, name, array in sorted(arrays, key=lambda entry: entry[:3]):
        kind = array.dtype.newbyteorder("<")
        _add(digest, _canonical([level, stack, name, kind.str, list(array.shape)]))
        _add(digest, np.ascontiguousarray(array, kind).tobytes())


def _canonical(value: Any) -> bytes:
    # through JSON first: keys become text before they are sorted
    return json.dumps(json.loads(json.dumps(value)), sort_keys=True, separators=(",", ":")).encode()


def _add(digest: Any, part: bytes) -> None:
    """Add a part behind its length, so that no two sequences of parts give the same bytes."""
    digest.update(len(part).to_bytes(8, "big"))
    digest.update(part)
