"""Spectra: how many directions a role uses, from eigenvalues or singular values."""

from __future__ import annotations

from torch import Tensor

from lightning_geo.functional._tensors import as_float, shannon_entropy
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.shapes import Float

__all__ = ["effective_rank", "participation_ratio", "stable_rank", "top_share"]


def _shares(spectrum: Float[Tensor, "*batch d"], name: str) -> Float[Tensor, "*batch d"]:
    """Divide a spectrum ``[..., d]`` by its sum: NaN if that is zero, as 0/0 is."""
    # covariance matrices have no negative eigenvalue but rounding gives them some
    spectrum = as_float(spectrum, name, "d").clamp(min=0)
    return spectrum / spectrum.sum(-1, keepdim=True)


def effective_rank(singular_values: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    r"""Effective rank: the exponential of the entropy of the singular values.

    .. math:: \exp\Big( -\sum_i p_i \ln p_i \Big), \quad p_i = \sigma_i / \textstyle\sum_j \sigma_j

    Args:
        singular_values: ``[..., d]`` in any order (of a covariance: the square roots of its eigenvalues).
            Values below 0 are rounding and count as 0.

    Returns:
        ``[...]`` in [1, d], dimensions; NaN where all are 0.

    Raises:
        TypeError: If ``singular_values`` is not floating point.
        ValueError: If it has no axis.

    Source: Roy & Vetterli 2007, The effective rank; RankMe (Garrido et al. 2023).

    Example:
        >>> import torch
        >>> effective_rank(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
        tensor([4., 1.])
    """
    return shannon_entropy(_shares(singular_values, "singular_values")).exp()


@computes("effective_rank", reads=("eigenvalues",))
def _effective_rank(eigenvalues: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    return effective_rank(as_float(eigenvalues, "eigenvalues", "d").clamp(min=0).sqrt())


@computes("participation_ratio", reads=("eigenvalues",))
def participation_ratio(eigenvalues: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    r"""Participation ratio: a count of dimensions that the strongest dominate.

    .. math:: \big( \textstyle\sum_i \lambda_i \big)^2 \big/ \sum_i \lambda_i^2

    Args:
        eigenvalues: Of a covariance, ``[..., d]`` in any order. Values below 0 are rounding and count as 0.

    Returns:
        ``[...]`` in [1, d], dimensions; NaN where all are 0.

    Raises:
        TypeError: If ``eigenvalues`` is not floating point.
        ValueError: If it has no axis.

    Source: Gao et al. 2017, A theory of multineuronal dimensionality.

    Example:
        >>> import torch
        >>> participation_ratio(torch.tensor([3.0, 1.0]))
        tensor(1.6000)
    """
    return _shares(eigenvalues, "eigenvalues").square().sum(-1).reciprocal()


@computes("stable_rank", reads=("eigenvalues",))
def stable_rank(eigenvalues: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    r"""Stable rank: total variance over the largest.

    .. math:: \textstyle\sum_i \lambda_i \big/ \lambda_1

    Args:
        eigenvalues: Of a covariance, ``[..., d]`` in any order. Values below 0 are rounding and count as 0.

    Returns:
        ``[...]`` in [1, d], dimensions; NaN where all are 0.

    Raises:
        TypeError: If ``eigenvalues`` is not floating point.
        ValueError: If it has no axis.

    Source: Rudelson & Vershynin 2007.

    Example:
        >>> import torch
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(2.)
    """
    return top_share(eigenvalues).reciprocal()


@computes("top_share", reads=("eigenvalues",))
def top_share(eigenvalues: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    r"""Share of the variance in the strongest direction.

    .. math:: \lambda_1 \big/ \textstyle\sum_i \lambda_i

    Args:
        eigenvalues: Of a covariance, ``[..., d]`` in any order. Values below 0 are rounding and count as 0.

    Returns:
        ``[...]`` in [1/d, 1]; NaN where all are 0.

    Raises:
        TypeError: If ``eigenvalues`` is not floating point.
        ValueError: If it has no axis.

    Source: Explained variance of the first principal component.

    Example:
        >>> import torch
        >>> top_share(torch.tensor([2.0, 1.0, 1.0]))
        tensor(0.5000)
    """
    return _shares(eigenvalues, "eigenvalues").amax(-1)
