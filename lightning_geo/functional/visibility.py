"""Share of the pairs of queries and keys that masks leave visible."""

from __future__ import annotations

from torch import Tensor

from lightning_geo.functional._tensors import as_float
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.shapes import Float

__all__ = ["visible_share"]


@computes("future_visible", reads=("future.visible", "future.pairs"))
@computes("padding_visible", reads=("padding.visible", "padding.pairs"))
def visible_share(
    visible: Float[Tensor, "*batch"], pairs: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Share of pairs that are visible.

    Args:
        visible: Number of visible ones, ``[...]``.
        pairs: Number of all, ``[...]``.

    Returns:
        ``[...]`` in [0, 1], float32 (float64 stays); NaN where there are none.

    Raises:
        TypeError: If an argument is not floating point.

    Example:
        >>> import torch
        >>> visible_share(torch.tensor([0.0, 3.0]), torch.tensor([6.0, 6.0]))
        tensor([0.0000, 0.5000])
    """
    return as_float(visible, "visible") / as_float(pairs, "pairs")  # 0/0 is the NaN
