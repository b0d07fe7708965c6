"""The information stream: how long its vectors are, how they are distributed, how much a layer adds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_geo import kernels
from lightning_geo.functional._tensors import as_float, check_mask, masked_mean
from lightning_geo.kernels import BACKENDS, STREAM, Backend, StreamStatistics
from lightning_geo.kernels.vectors import token_planes
from lightning_geo.kernels.workspace import where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.arguments import check_one_of, check_statistics
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.shapes import Bool, Float

__all__ = ["kurtosis", "mean_over_tokens", "skewness", "stream_statistics", "token_norm", "update_ratio"]


def stream_statistics(
    x: Float[Tensor, "batch tokens features"],
    mask: Bool[Tensor, "#batch #tokens"] | None = None,
    before: Float[Tensor, "batch tokens features"] | None = None,
    *,
    backend: Backend = "auto",
    statistics: Iterable[str] | None = None,
) -> StreamStatistics:
    r"""Length, distribution over features, change and cone of hidden states, in one read.

    Args:
        x: ``[B, N, d]``, any floating point type.
        mask: Bool ``[B, N]`` (sizes equal or 1), True = real token. The rest has no influence.
        before: The block's input, like ``x``, for ``update_ratio``.
        backend: As in :func:`attention_statistics`.
        statistics: Which of ``norm``, ``skewness``, ``kurtosis``, ``update_ratio`` and ``directions`` to
            compute; None for all of them.

    Returns:
        :class:`~lightning_geo.kernels.StreamStatistics`, without a gradient; what was not requested is None.

    Raises:
        TypeError: If ``x`` or ``before`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit, or a statistic is unknown.

    Source: Xiong et al. 2020; Bondarenko et al. 2023; The geometry of BERT, arXiv 2502.12033.

    Example:
        >>> statistics = stream_statistics(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
        >>> statistics.norm, statistics.directions
        (tensor([[5., 1.]]), tensor([[0.6000, 1.8000]]))
    """
    check_one_of("backend", backend, BACKENDS)
    requested = check_statistics(statistics, STREAM)
    _check_tokens(x, "x")
    if x.ndim != 3:
        raise ArgumentError(f"Expected `x` to have shape [batch, token, feature] but got {list(x.shape)}.")
    if mask is not None:
        check_mask(mask, x.shape[:-1])
        mask = mask.expand(x.shape[:-1])
    if before is not None:
        _check_before(before, x)
    return kernels.stream_statistics(x, mask, before, requested, backend)


def mean_over_tokens(
    plane: Float[Tensor, "*#batch n"], valid: Bool[Tensor, "*#batch n"], finite: Bool[Tensor, "*#batch n"]
) -> Float[Tensor, " ..."]:
    """Mean of a plane ``[..., n]`` over the real tokens that have a value, ``[...]``.

    NaN where no token has one, and for a sequence with a feature that is NaN or infinite: not that of its
    other tokens.

    Args:
        plane: One statistic per token, NaN where it is not defined.
        valid: Bool, True = real token.
        finite: Bool, False = a feature of the token is NaN or infinite.
    """
    intact = (finite | ~valid).all(-1)
    mean = masked_mean(plane, valid & (plane == plane))  # all but NaN
    return where_defined(intact, mean)


def _check_tokens(x: Float[Tensor, " ..."], name: str) -> None:
    as_float(x[:0] if isinstance(x, Tensor) and x.ndim > 2 else x, name, "n d")  # checks; converts nothing


def _check_before(before: Float[Tensor, " ..."], x: Float[Tensor, " ..."]) -> None:
    _check_tokens(before, "before")
    if before.shape != x.shape:
        raise ArgumentError(
            f"Expected `before` to have the shape of `x`, {list(x.shape)}, but got {list(before.shape)}. "
            "A block that changes the shape has no update ratio."
        )


def _mean(
    name: str,
    x: Float[Tensor, "*batch n d"],
    mask: Bool[Tensor, "*#batch #n"] | None,
    before: Float[Tensor, "*batch n d"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean of one statistic over tokens, for any leading axes ``[..., n, d]``."""
    x = as_float(x, "x", "n d")
    if mask is not None:
        check_mask(mask, x.shape[:-1])
    if before is not None:
        _check_before(before, x)
    norm = torch.linalg.vector_norm(x, dim=-1)
    valid = torch.ones_like(norm, dtype=torch.bool) if mask is None else mask.expand(norm.shape)
    planes, finite = token_planes(x, norm, before, frozenset({name}))
    return mean_over_tokens(planes[name], valid, finite)


def token_norm(
    x: Float[Tensor, "*batch n d"], mask: Bool[Tensor, "*#batch #n"] | None = None
) -> Float[Tensor, "*batch"]:
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
    return _mean("norm", x, mask)


@computes("hidden_norm", reads=("norm",))
def _token_norms(norm: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return norm


def skewness(
    x: Float[Tensor, "*batch n d"], mask: Bool[Tensor, "*#batch #n"] | None = None
) -> Float[Tensor, "*batch"]:
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
    return _mean("skewness", x, mask)


def kurtosis(
    x: Float[Tensor, "*batch n d"], mask: Bool[Tensor, "*#batch #n"] | None = None
) -> Float[Tensor, "*batch"]:
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
    return _mean("kurtosis", x, mask)


def update_ratio(
    x: Float[Tensor, "*batch n d"],
    before: Float[Tensor, "*batch n d"],
    mask: Bool[Tensor, "*#batch #n"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""How much a block changes its input, averaged over tokens.

    .. math:: \frac{1}{n} \sum_i \frac{\|x_i - b_i\|}{\|b_i\|}

    Args:
        x: The block's output, ``[..., n, d]``, any floating point type.
        before: The block's input, same shape. Tokens that are zero there are left out.
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
    return _mean("update_ratio", x, mask, before)
