"""How statistics are compared, field by field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kernels.tolerances import DEFAULT_TOLERANCE, TOLERANCES
from lightning_geo.kernels import AttentionStatistics


def as_arrays(statistics: AttentionStatistics) -> dict[str, NDArray[Any]]:
    """The fields that are there."""
    values = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
    return {name: value.numpy() for name, value in values.items() if isinstance(value, Tensor)}


def assert_agree(got: AttentionStatistics, expected: dict[str, NDArray[Any]]) -> None:
    """Compare all fields, NaN equal to NaN, each within its tolerance."""
    arrays = as_arrays(got)
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = TOLERANCES.get(name, DEFAULT_TOLERANCE)
        np.testing.assert_allclose(
            arrays[name], value, rtol=tolerance.relative, atol=tolerance.absolute, err_msg=name
        )


def assert_float32(statistics: AttentionStatistics) -> None:
    """What every backend returns, whatever it was given."""
    for name, value in as_arrays(statistics).items():
        assert value.dtype == (np.bool_ if name == "live" else np.float32), name
