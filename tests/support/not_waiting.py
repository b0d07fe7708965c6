"""A sample on a CPU as on a device whose results the host has to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from lightning_geo.observe.evidence.mask_structure import MaskStructures


@contextmanager
def not_waiting() -> Iterator[None]:
    """As on a CUDA device, whose results the host does not know within a sample."""
    with patch.object(MaskStructures, "knows_at_once", staticmethod(lambda call: False)):
        yield
