"""The information stream: how long its vectors are, how they are distributed, how much a layer adds."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional._tensors import as_float, check_mask, masked_mean
from lightning_geo.functional.registry import computes

__all__ = ["kurtosis", "skewness", "token_norm", "update_ratio"]


def _tokens(x: Tensor, mask: Tensor | None, name: str = "x") -> tuple[Tensor, Tensor]:
    """``x [..., n, d]`` in float32 and its mask ``[..., n]``, all True where there is none."""
    x = as_float(x, name, "n d")
    if mask is None:
        return x, torch.ones_like(x[..., 0], dtype=torch.bool)
    check_mask(mask, x.shape[:-1])
    return x, mask.expand(x.shape[:-1])


def token_norm(x: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean Euclidean length of the tokens.

    .. math:: \frac{1}{n} \sum_i \|x_i\|

    Args:
        x: Token vectors ``[..., n, d]``, any floating point type.
        mask: Boolean ``[..., n]`` (sizes equal or 1), True = real token. The rest has no influence.

    Returns:
        ``[...]`` in float32 (float64 stays); NaN where no token is valid.

    Raises:
        TypeError: If ``x`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit.

    Source: Xiong et al. 2020 (growth of the stream with depth); Henry et al. 2020 (of queries and keys).

    Example:
        >>> token_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor(3.)
    """
    x, valid = _tokens(x, mask)
    return masked_mean(torch.linalg.vector_norm(x, dim=-1), valid)


def _standardized_moment(x: Tensor, mask: Tensor | None, order: int) -> Tensor:
    """Mean over tokens of the ``order``-th standardised moment over features."""
    x, valid = _tokens(x, mask)
    mean = x.mean(-1, keepdim=True)
    deviation = x - mean
    variance = deviation.square().mean(-1, keepdim=True)
    # A token whose features are all equal has no shape; rounding of its mean must not give it one
    # (the threshold is scipy.stats.skew's).
    constant = variance <= (torch.finfo(x.dtype).resolution * mean).square()
    scale = torch.where(constant, 1.0, variance).sqrt()
    moment = (deviation / scale).pow(order).mean(-1)  # standardised first: x⁴ itself may overflow
    return masked_mean(moment, valid & ~constant.squeeze(-1))


def skewness(x: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Skewness over features, averaged over tokens.

    .. math:: \frac{1}{d} \sum_f \Big( \frac{x_f - \mu}{\sigma} \Big)^3

    with μ and σ (not Bessel-corrected) of the token's own features. Tokens whose features are all
    equal have no skewness and are left out.

    Args:
        x: Token vectors ``[..., n, d]``, any floating point type.
        mask: Boolean ``[..., n]`` (sizes equal or 1), True = real token. The rest has no influence.

    Returns:
        ``[...]`` in float32 (float64 stays); NaN where no valid token has one.

    Raises:
        TypeError: If ``x`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit.

    Source: Fisher–Pearson coefficient, as ``scipy.stats.skew``.

    Example:
        >>> skewness(torch.tensor([[0.0, 0.0, 0.0, 4.0]]))
        tensor(1.1547)
    """
    return _standardized_moment(x, mask, 3)


def kurtosis(x: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Excess kurtosis over features, averaged over tokens: 0 for a normal distribution.

    .. math:: \frac{1}{d} \sum_f \Big( \frac{x_f - \mu}{\sigma} \Big)^4 - 3

    Tokens whose features are all equal have no kurtosis and are left out.

    Args:
        x: Token vectors ``[..., n, d]``, any floating point type.
        mask: Boolean ``[..., n]`` (sizes equal or 1), True = real token. The rest has no influence.

    Returns:
        ``[...]``, at least -2, in float32 (float64 stays); NaN where no valid token has one.

    Raises:
        TypeError: If ``x`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit.

    Source: Bondarenko et al. 2023 (outlier features); as ``scipy.stats.kurtosis``.

    Example:
        >>> kurtosis(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
        tensor(-2.)
    """
    return _standardized_moment(x, mask, 4) - 3


def update_ratio(x: Tensor, before: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""How much a block changes its input, averaged over tokens.

    .. math:: \frac{1}{n} \sum_i \frac{\|x_i - b_i\|}{\|b_i\|}

    Args:
        x: What the block returns, ``[..., n, d]``, any floating point type.
        before: What the block was given, same shape. Tokens that are zero there are left out.
        mask: Boolean ``[..., n]`` (sizes equal or 1), True = real token. The rest has no influence.

    Returns:
        ``[...]`` in float32 (float64 stays); NaN where no valid token has one.

    Raises:
        TypeError: If ``x`` or ``before`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit.

    Source: Liu et al. 2023 (Deja Vu: a block changes its input little).

    Example:
        >>> update_ratio(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(1.)
    """
    x, valid = _tokens(x, mask)
    before = as_float(before, "before", "n d")
    if before.shape != x.shape:
        raise ValueError(
            f"Expected `before` to have the shape of `x`, {list(x.shape)}, but got {list(before.shape)}. "
            "A block that changes the shape has no update ratio."
        )
    length = torch.linalg.vector_norm(before, dim=-1)
    change = torch.linalg.vector_norm(x - before, dim=-1)
    return masked_mean(change / torch.where(length == 0, 1.0, length), valid & (length != 0))


@computes("norm")
def _norm(x: Tensor, mask: Tensor | None, before: Tensor | None) -> Tensor:
    return token_norm(x, mask)


@computes("skewness")
def _skewness(x: Tensor, mask: Tensor | None, before: Tensor | None) -> Tensor:
    return skewness(x, mask)


@computes("kurtosis")
def _kurtosis(x: Tensor, mask: Tensor | None, before: Tensor | None) -> Tensor:
    return kurtosis(x, mask)


@computes("update_ratio")
def _update_ratio(x: Tensor, mask: Tensor | None, before: Tensor | None) -> Tensor:
    if before is None:
        return torch.full_like(token_norm(x, mask), torch.nan)
    return update_ratio(x, before, mask)
