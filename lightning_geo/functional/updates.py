"""Changes of weights between two samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional._tensors import as_float
from lightning_geo.kernels.workspace import where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.shapes import Float, Int64

__all__ = ["bf16_share", "unchanged_share", "update_size", "weight_similarity"]

#: Integers as wide as a floating point type: tensors of equal bits are equal as integers.
_BITS = {
    torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}  # fmt: skip


@computes("update_size", reads=("drawn", "drawn.before", "drawn.each"))
def update_size(
    weights: Float[Tensor, "*batch n"],
    before: Float[Tensor, "*batch n"],
    each: Float[Tensor, "*#batch n"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Size of the change of weights, as a share of their size before it.

    .. math:: \lVert W - W_\text{prev} \rVert \,/\, \lVert W_\text{prev} \rVert

    Args:
        weights: ``[..., n]``.
        before: ``[..., n]``, the same weights earlier.
        each: ``[n]`` or ``[..., n]``, how many weights each of them stands for; None for one.

    Returns:
        ``[...]`` >= 0, float32 (float64 stays); NaN where all weights were 0.

    Raises:
        TypeError: If an argument is not floating point.

    Example:
        >>> update_size(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
        tensor(0.1000)
    """
    weights, before = as_float(weights, "weights", "n"), as_float(before, "before", "n")
    change = weights - before
    if each is not None:
        each = as_float(each, "each", "n").sqrt()
        change, before = change * each, before * each
    size = torch.linalg.vector_norm(before, dim=-1)
    return where_defined(size > 0, torch.linalg.vector_norm(change, dim=-1) / size)


@computes("unchanged_share", reads=("drawn", "drawn.before"))
def unchanged_share(
    weights: Float[Tensor, "*batch n"], before: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """Share of weights whose bits are those of before.

    Args:
        weights: ``[..., n]``.
        before: ``[..., n]`` of the same type.

    Returns:
        ``[...]`` in [0, 1], float32 (float64 stays); NaN where there are none.

    Raises:
        TypeError: If an argument is not floating point.

    Example:
        >>> unchanged_share(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 5.0]))
        tensor(0.7500)
    """
    wide = as_float(weights, "weights", "n").dtype
    as_float(before, "before", "n")
    bits = _BITS[weights.dtype]
    return (weights.view(bits) == before.view(bits)).to(wide).mean(-1)


@computes("bf16_share", reads=("drawn.wide", "drawn.wide.before"))
def bf16_share(
    weights: Float[Tensor, "*batch n"], before: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """Share of changed weights, those that are 0 left out, that bfloat16 holds exactly.

    One float32 number in 2¹⁶ is on bfloat16's grid by chance.

    Args:
        weights: ``[..., n]``.
        before: ``[..., n]``, the same weights earlier.

    Returns:
        ``[...]`` in [0, 1], float32 (float64 stays); NaN where nothing changed.

    Raises:
        TypeError: If an argument is not floating point.

    Example:
        >>> bf16_share(torch.tensor([0.5, 0.1, 2.0, 0.0]), torch.tensor([0.4, 0.2, 2.0, 1.0]))
        tensor(0.5000)
    """
    weights, before = as_float(weights, "weights", "n"), as_float(before, "before", "n")
    counted = (weights != before) & (weights != 0)
    held = counted & (weights.to(torch.bfloat16) == weights)
    return held.sum(-1).to(weights.dtype) / counted.sum(-1)  # 0/0 is the NaN


@computes("weight_similarity", reads=("drawn.products", "drawn.module"))
def weight_similarity(
    products: Float[Tensor, "*batch layers layers"], module: Int64[Tensor, "*batch layers"]
) -> Float[Tensor, "*batch layers"]:
    r"""Largest cosine of a layer's weights with those of a layer that is another module.

    .. math:: \max_{l' :\, m_{l'} \ne m_l} \frac{\langle W_l, W_{l'} \rangle}{\|W_l\| \, \|W_{l'}\|}

    Args:
        products: Inner products of all layers' weights, ``[..., L, L]``.
        module: Number of each layer's module, ``[..., L]``; shared layers (ALBERT) have one number.

    Returns:
        ``[..., L]`` in [-1, 1], float32 (float64 stays); NaN without another module, and where weights are 0
        or not finite.

    Raises:
        TypeError: If ``products`` is not floating point.
        ValueError: If ``products`` is not square.

    Example:
        >>> weights = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
        >>> weight_similarity(weights @ weights.T, torch.arange(3))
        tensor([1., 0., 1.])
    """
    products = as_float(products, "products", "n n")
    size = products.diagonal(dim1=-2, dim2=-1).sqrt()
    cosine = (products / (size[..., :, None] * size[..., None, :])).clamp(-1, 1)
    other = module[..., :, None] != module[..., None, :]
    nearest = torch.where(other, cosine, -torch.inf).amax(-1)
    return nearest.nan_to_num(torch.nan, neginf=torch.nan)
