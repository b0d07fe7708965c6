"""Heads of a layer compared: which outputs agree, and how many directions each adds."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional._tensors import as_float, exact_dtype, exact_matmul
from lightning_geo.kernels.workspace import constant, where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.shapes import Float

__all__ = [
    "block_norms",
    "block_traces",
    "complementarity",
    "head_similarity",
    "linear_cka",
    "redundancy",
    "similarity_of_blocks",
]


def linear_cka(
    x: Float[Tensor, "*#batch n d1"], y: Float[Tensor, "*#batch n d2"]
) -> Float[Tensor, "*#batch"]:
    r"""Linear centred kernel alignment: do two representations of the same tokens agree up to rotation?

    .. math:: \frac{\|X^\top Y\|_F^2}{\|X^\top X\|_F \, \|Y^\top Y\|_F}

    with the columns of X and Y centred.

    Args:
        x: ``[..., n, d1]``, any floating point type.
        y: ``[..., n, d2]``, the same n tokens.

    Returns:
        ``[...]`` in [0, 1], float32 (float64 stays); NaN where one of them does not vary.

    Raises:
        TypeError: If an argument is not floating point.
        ValueError: If the tokens are not as many, or ranks do not fit.

    Source: Kornblith et al. 2019, Similarity of Neural Network Representations Revisited.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> linear_cka(x, -3 * x.flip(-1) + 1)
        tensor(1.)
    """
    x, y = as_float(x, "x", "n d1"), as_float(y, "y", "n d2")
    if x.shape[-2] != y.shape[-2]:
        raise ArgumentError(
            f"Expected `x` and `y` to hold the same n tokens, [..., n, d1] and [..., n, d2], "
            f"but got {list(x.shape)} and {list(y.shape)}."
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    wide = exact_dtype(x)
    x, y = (z.to(wide) - z.to(wide).mean(-2, keepdim=True) for z in (x, y))
    cross, own_x, own_y = (exact_matmul(a.mT, b).square().sum((-2, -1)) for a, b in ((x, y), (x, x), (y, y)))
    return (cross / (own_x * own_y).sqrt()).clamp(max=1).to(dtype)


def block_norms(covariance: Float[Tensor, "*batch H D H D"]) -> Float[Tensor, "*batch H H"]:
    """Frobenius norms of the blocks of the covariance of all heads' outputs, ``[..., H, D, H, D]``."""
    covariance = as_float(covariance, "covariance", "H D H D")
    norms: Tensor = torch.linalg.vector_norm(covariance, dim=(-3, -1))
    return norms


def head_similarity(covariance: Float[Tensor, "*batch H D H D"]) -> Float[Tensor, "*batch H H"]:
    r"""Linear CKA of every pair of heads of a layer, from the covariance of their concatenated outputs.

    .. math:: \frac{\|S_{hh'}\|_F^2}{\|S_{hh}\|_F \, \|S_{h'h'}\|_F}

    Args:
        covariance: ``[..., H, D, H, D]``, of the centred outputs; block (h, h') is ``S_hh'``. Any scale.

    Returns:
        ``[..., H, H]`` in [0, 1], symmetric, diagonal 1; NaN in row and column of a head that does not vary.

    Raises:
        TypeError: If ``covariance`` is not floating point.
        ValueError: If its shape does not fit.

    Source: Kornblith et al. 2019.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 0.0], [-1.0, -2.0, 1.0], [0.0, 0.0, -1.0]])  # 3 heads of size 1
        >>> head_similarity((x.T @ x).reshape(3, 1, 3, 1))
        tensor([[1.0000, 1.0000, 0.2500],
                [1.0000, 1.0000, 0.2500],
                [0.2500, 0.2500, 1.0000]])
    """
    return similarity_of_blocks(block_norms(covariance))


def similarity_of_blocks(norms: Float[Tensor, "*batch H H"]) -> Float[Tensor, "*batch H H"]:
    """:func:`head_similarity` from the Frobenius norms of the covariance's blocks."""
    own = norms.diagonal(dim1=-2, dim2=-1)
    return (norms.square() / (own[..., :, None] * own[..., None, :])).clamp(max=1)


def redundancy(covariance: Float[Tensor, "*batch H D H D"]) -> Float[Tensor, "*batch H"]:
    r"""How well the most similar other head of the layer stands in for each head.

    .. math:: \max_{h' \ne h} \mathrm{CKA}(h, h')

    Args:
        covariance: ``[..., H, D, H, D]``, of the centred outputs. Any scale.

    Returns:
        ``[..., H]`` in [0, 1]; NaN for a head that does not vary or has no other that does.

    Raises:
        TypeError: If ``covariance`` is not floating point.
        ValueError: If its shape does not fit.

    Source: Kornblith et al. 2019 (linear CKA).

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 0.0], [-1.0, -2.0, 1.0], [0.0, 0.0, -1.0]])
        >>> redundancy((x.T @ x).reshape(3, 1, 3, 1))
        tensor([1.0000, 1.0000, 0.2500])
    """
    return _redundancy(block_norms(covariance))


@computes("redundancy", reads=("block_norms",))
def _redundancy(norms: Float[Tensor, "*batch H H"]) -> Float[Tensor, "*batch H"]:
    similarity = similarity_of_blocks(norms)
    itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    others = torch.where(itself | similarity.isnan(), constant(-1.0, similarity), similarity).amax(-1)
    return where_defined(others >= 0, others)


def complementarity(covariance: Float[Tensor, "*batch H D H D"]) -> Float[Tensor, "*batch"]:
    r"""Dimensions that the heads of a layer span together, as a share of the sum of what each spans alone.

    .. math:: \frac{(\mathrm{tr}\, S)^2 / \|S\|_F^2}{\sum_h (\mathrm{tr}\, S_{hh})^2 / \|S_{hh}\|_F^2}

    Participation ratios, from traces and block norms, without eigenvalues. At most 1 by
    Cauchy–Schwarz, reached by uncorrelated heads of equal tr S_hh / ‖S_hh‖²_F; 1/H for H copies of one
    head; lower still where one head outweighs the others. A head that does not vary adds nothing.

    Args:
        covariance: ``[..., H, D, H, D]``, of the centred outputs. Any scale.

    Returns:
        ``[...]`` in (0, 1]; NaN where no head varies.

    Raises:
        TypeError: If ``covariance`` is not floating point.
        ValueError: If its shape does not fit.

    Source: Gao et al. 2017, A theory of multineuronal dimensionality (participation ratio).

    Example:
        >>> complementarity(torch.eye(4).reshape(2, 2, 2, 2)), complementarity(torch.ones(2, 1, 2, 1))
        (tensor(1.), tensor(0.5000))
    """
    norms = block_norms(covariance)
    return _complementarity(norms, block_traces(covariance.to(norms.dtype)))


def block_traces(covariance: Float[Tensor, "*batch H D H D"]) -> Float[Tensor, "*batch H"]:
    """Traces of the heads' own covariances."""
    return covariance.diagonal(dim1=-4, dim2=-2).diagonal(dim1=-3, dim2=-2).sum(-1)


@computes("complementarity", reads=("block_norms", "traces"))
def _complementarity(
    norms: Float[Tensor, "*batch H H"], traces: Float[Tensor, "*batch H"]
) -> Float[Tensor, "*batch"]:
    own = norms.diagonal(dim1=-2, dim2=-1)
    alone = torch.linalg.vector_norm(traces / torch.where(own == 0, constant(1.0, own), own), dim=-1)
    together = traces.sum(-1) / torch.linalg.vector_norm(norms, dim=(-2, -1))
    ratio: Tensor = together / alone
    return ratio.square().clamp(max=1)
