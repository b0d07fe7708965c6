"""Records that agree but for rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_geo import GeometryRecord
from lightning_geo.metrics.selection import spec_of


def joined(*batches: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def assert_close(ours: GeometryRecord, theirs: GeometryRecord, *, divided: bool = False) -> None:
    """All metrics that the second has agree; less so where the same sequences came in other batches.

    Roots of small eigenvalues then show the rounding of sums.
    """
    assert ours.model["stacks"] == theirs.model["stacks"]
    for key in theirs:
        spectral = spec_of(key).family in ("subspace", "head")
        tolerance = 1e-3 if divided and spectral else 1e-6
        own = ours[of_source(key, ours)]
        np.testing.assert_allclose(own, theirs[key], rtol=tolerance, atol=tolerance, err_msg=key)


def of_source(key: str, record: GeometryRecord) -> str:
    """The name of a metric in a record: ``measure`` calls its batch a probe."""
    return key if key in record.keys() else key.replace(".probe", ".batch")  # noqa: SIM118 (no mapping)
