"""Stacks the arrays of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.utils.errors import ArgumentError

__all__ = ["stack_samples"]


def stack_samples(arrays: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    """Return the arrays of several samples as one, NaN where a sample lacks values.

    Args:
        arrays: One per sample, ``None`` for a sample without; sizes may differ, the number of axes may not.

    Returns:
        [sample, ...], as large along each axis as the largest array.

    Raises:
        ValueError: If the numbers of axes differ, or the sizes differ so much that the models must.

    Example:
        >>> stack_samples([np.ones(2), None, np.zeros(1)])
        array([[ 1.,  1.],
               [nan, nan],
               [ 0., nan]])
    """
    given = [array for array in arrays if array is not None]
    if len({array.ndim for array in given}) > 1:
        raise ArgumentError(
            f"Expected a metric to have the same axes in all samples, but got {_shapes(given)}."
        )
    shape = tuple(np.max([array.shape for array in given], axis=0))
    if math.prod(shape) > 8 * max(array.size for array in given) + 1024:
        raise ArgumentError(
            f"Expected the samples to be of one model, but got arrays of shape {_shapes(given)}."
        )
    result = np.full((len(arrays), *shape), np.nan, given[0].dtype)
    for sample, array in zip(result, arrays, strict=True):
        if array is not None:
            sample[tuple(slice(size) for size in array.shape)] = array
    return result


def _shapes(arrays: Sequence[NDArray[Any]]) -> str:
    return " and ".join(sorted({str(list(array.shape)) for array in arrays})[:4])
