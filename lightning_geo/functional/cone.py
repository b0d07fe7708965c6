"""The cone: do the tokens of a sequence point the same way?"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional._tensors import as_float, check_mask
from lightning_geo.kernels import sum_directions
from lightning_geo.kernels.workspace import where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.shapes import Bool, Float, Num

__all__ = ["cone_index", "mean_cosine", "sum_of_directions"]

#: The quantities that these functions read, of hidden states and of heads' outputs.
_STAGE = ("directions", "tokens", "directed")
_OUTPUTS = ("output.directions", "output.tokens", "output.directed")


def sum_of_directions(
    x: Float[Tensor, "*batch n d"], mask: Bool[Tensor, "*#batch #n"] | None = None, name: str = "x"
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Add up the unit vectors ``x/‖x‖`` of the valid tokens; a zero vector has no direction and adds zero.

    Args:
        x: ``[..., n, d]``.
        mask: Boolean ``[..., n]``, True = real token.
        name: Name of ``x`` in error messages.

    Returns:
        The sum ``[..., d]``, the number of valid tokens ``[...]``, and how many of them have a direction.
    """
    x = as_float(x, name, "n d")
    if mask is None:
        valid = x.new_full(x.shape[:-2], x.shape[-2])
    else:
        check_mask(mask, x.shape[:-1], "mask" if name == "x" else f"{name}_mask")
        valid = mask.expand(x.shape[:-1]).sum(-1).to(x.dtype)
    total, directed = sum_directions(x, torch.linalg.vector_norm(x, dim=-1), mask)
    return total, valid, directed


def cone_index(
    x: Float[Tensor, "*batch n d"], mask: Bool[Tensor, "*#batch #n"] | None = None, normalized: bool = False
) -> Float[Tensor, "*batch"]:
    r"""Cone index: the length of the sum of the tokens' unit vectors.

    .. math:: I = \Big\| \sum_{i=1}^{n} \frac{x_i}{\|x_i\|} \Big\|

    Args:
        x: Token vectors ``[..., n, d]``, any floating point type. Zero vectors add zero.
        mask: Boolean ``[..., n]`` (sizes equal or 1), True = real token. The rest has no influence.
        normalized: Divide by the number of valid tokens: the mean resultant length, in [0, 1].

    Returns:
        ``[...]`` in float32 (float64 stays); NaN where no token is valid.

    Raises:
        TypeError: If ``x`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit.

    Source: The geometry of BERT, arXiv 2502.12033; Mardia & Jupp 2000 (mean resultant length).

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> cone_index(x), cone_index(x, normalized=True)
        (tensor(1.4142), tensor(0.7071))
    """
    directions = sum_of_directions(x, mask)
    return _cone(*directions) if normalized else _cone_index(*directions)


def mean_cosine(
    x: Float[Tensor, "*batch n d"], mask: Bool[Tensor, "*#batch #n"] | None = None
) -> Float[Tensor, "*batch"]:
    r"""Mean cosine of two different tokens of a sequence, from the cone index in one pass.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} \cos(x_i, x_j) = \frac{I^2 - n}{n(n-1)}

    Pairs with a zero vector count as cosine 0 (as in scikit-learn's ``cosine_similarity``): then the
    n that is subtracted is the number of vectors that are not zero.

    Args:
        x: Token vectors ``[..., n, d]``, any floating point type.
        mask: Boolean ``[..., n]`` (sizes equal or 1), True = real token. The rest has no influence.

    Returns:
        ``[...]`` in [-1, 1], float32 (float64 stays); NaN where fewer than two tokens are valid.

    Raises:
        TypeError: If ``x`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit.

    Source: Ethayarajh 2019, How contextual are contextualized word representations? (anisotropy).

    Example:
        >>> mean_cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]))
        tensor(0.3333)
    """
    return _mean_cosine(*sum_of_directions(x, mask))


@computes("cone_index", reads=_STAGE)
@computes("cone_index.head", reads=_OUTPUTS)
def _cone_index(
    total: Float[Tensor, "*batch d"], valid: Num[Tensor, "*batch"], directed: Num[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    return where_defined(valid > 0, torch.linalg.vector_norm(total, dim=-1))


@computes("cone", reads=_STAGE)
@computes("cone.head", reads=_OUTPUTS)
def _cone(
    total: Float[Tensor, "*batch d"], valid: Num[Tensor, "*batch"], directed: Num[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    return (_cone_index(total, valid, directed) / valid).clamp(max=1)


@computes("mean_cosine", reads=_STAGE)
@computes("mean_cosine.head", reads=_OUTPUTS)
def _mean_cosine(
    total: Float[Tensor, "*batch d"], valid: Num[Tensor, "*batch"], directed: Num[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    cosines = total.square().sum(-1) - directed
    mean = (cosines / (valid * (valid - 1)).clamp(min=1)).clamp(-1, 1)
    return where_defined(valid > 1, mean)
