"""Arrays over layers and heads reduced to layers, to samples or to one number."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["reduce_finite", "root_mean_square"]


def reduce_finite(
    values: NDArray[Any], summary: Literal["mean", "max"] = "mean", *, keep: int = 0
) -> NDArray[np.float64]:
    """Return the mean or the maximum of the finite values.

    A layer without attention holds NaN and a collapsed one may hold infinities, so that ``np.mean`` would
    lose the whole model's number to one cell.

    Args:
        values: Of any shape; a metric of one sample has [layer] or [layer, head].
        summary: ``"mean"`` or ``"max"``, as in :attr:`~lightning_geo.metrics.spec.MetricSpec.summary`.
        keep: How many leading axes stay: 0 for one number, 1 for one per layer of a sample or per sample of a
            run, 2 for one per sample and layer.

    Returns:
        ``values.shape[:keep]`` in float64, NaN where no value is finite.

    Example:
        >>> entropy = np.array([[1.0, 3.0], [np.nan, np.inf]])
        >>> reduce_finite(entropy, keep=1)
        array([ 2., nan])
        >>> float(reduce_finite(entropy, "max"))
        3.0
    """
    flat = values.reshape(*values.shape[:keep], -1)
    defined = np.isfinite(flat)
    if summary == "max":
        result = np.where(defined, flat, -np.inf).max(axis=-1, initial=-np.inf)
    else:
        total = np.where(defined, flat, 0.0).sum(axis=-1, dtype=np.float64)
        result = total / np.maximum(defined.sum(axis=-1), 1)
    return np.where(defined.any(axis=-1), result, np.nan).astype(np.float64, copy=False)


def root_mean_square(values: NDArray[Any], *, keep: int = 0) -> NDArray[np.float64]:
    r"""Return :math:`\sqrt{\operatorname{mean}(x^2)}` of the finite values.

    Args:
        values: Of any shape.
        keep: How many leading axes stay, as in :func:`reduce_finite`.

    Returns:
        ``values.shape[:keep]`` in float64, NaN where no value is finite.

    Example:
        >>> float(root_mean_square(np.array([[1.0, -7.0], [np.nan, 5.0]])))
        5.0
    """
    return np.sqrt(reduce_finite(values.astype(np.float64) ** 2, keep=keep))
