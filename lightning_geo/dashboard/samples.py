"""Samples of a metric: which of them stand, and how they are sent to the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_geo.dashboard.metadata import TagAddress, tag_of
from lightning_geo.storage.stacking import stack_samples
from lightning_geo.utils.errors import DamagedError

__all__ = ["framed", "in_force", "pack"]


def in_force(samples: Sequence[Any], sessions: Sequence[Any]) -> list[Any]:
    """Leave out what resumed sessions replaced, by the rules of ``load_history``.

    TensorBoard's fast data server does not act on session starts, so they are applied here. A sample is void
    if a session that began later starts at or before its step; of the rest the last written wins.

    Args:
        samples: Data with ``step`` and ``wall_time``, in the order of writing.
        sessions: The same of session starts.
    """
    kept: list[Any] = []
    for sample in samples:
        if any(s.step <= sample.step and s.wall_time > sample.wall_time for s in sessions):
            continue
        while kept and kept[-1].step >= sample.step:
            kept.pop()
        kept.append(sample)
    return kept


def pack(samples: Sequence[Any], address: TagAddress, header: dict[str, Any]) -> bytes:
    """Return samples as the page reads them: the header's length, the header as JSON, float32 values.

    Args:
        samples: Data with ``step`` and ``numpy``.
        address: Which metric they are of.
        header: More for the header, beside ``shape`` [sample, layer, head] and ``steps``.

    Raises:
        ValueError: If what is stored is no numeric array.
    """
    if any(sample.numpy.dtype.kind not in "fiu" for sample in samples):
        raise DamagedError(f"Expected numbers in {tag_of(address)!r}, but other data is stored there.")
    arrays = [np.atleast_1d(sample.numpy).astype("<f4", copy=False) for sample in samples]
    values = stack_samples(arrays) if arrays else np.empty((0, 0), "<f4")
    # whatever its axes: layers down, the rest to the right
    shape = (*values.shape[:2], int(np.prod(values.shape[2:])))
    return framed({**header, "shape": shape, "steps": [int(s.step) for s in samples]}, values.tobytes())


def framed(header: dict[str, Any], content: bytes) -> bytes:
    """Return the length of a header, the header as JSON, and the content behind it."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # float32 wants to lie at a multiple of four
    return b"".join((np.uint32(len(text)).astype("<u4").tobytes(), text, content))
