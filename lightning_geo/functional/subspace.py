"""Subspaces: how many directions a role uses, which ones, and how far apart two subspaces are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_geo import kernels
from lightning_geo.arguments import check_one_of
from lightning_geo.functional._tensors import (
    as_float,
    check_mask,
    check_wanted,
    exact_dtype,
    exact_matmul,
    masked_mean,
    shannon_entropy,
)
from lightning_geo.functional.cone import sum_of_directions
from lightning_geo.functional.registry import ObservedCall, computes
from lightning_geo.kernels import BACKENDS, MOMENTS, Backend, HeadMoments

__all__ = [
    "effective_rank",
    "head_moments",
    "participation_ratio",
    "principal_angles",
    "principal_subspace",
    "projection_similarity",
    "qk_cosine",
    "stable_rank",
    "subspace_distance",
    "top_share",
]


def head_moments(
    x: Tensor,
    mask: Tensor | None = None,
    *,
    backend: Backend = "auto",
    statistics: Iterable[str] | None = None,
) -> HeadMoments:
    r"""First and second moments of one role's vectors per head, and their cone, in one read.

    .. math:: \bar x = \frac{1}{n} \sum_i x_i, \quad S = \sum_i (x_i - \bar x)(x_i - \bar x)^\top

    over the real tokens of all sequences. S / n is the covariance whose eigenvalues
    :func:`participation_ratio` and its neighbours take.

    Args:
        x: ``[B, H, N, D]``, any floating point type, any strides.
        mask: Bool ``[B, N]`` (sizes equal or 1), True = real token. The rest has no influence.
        backend: As in :func:`attention_statistics`.
        statistics: Which of ``norm``, ``directions`` and ``scatter`` (with ``count`` and ``mean``) to
            compute; None for all of them.

    Returns:
        :class:`~lightning_geo.kernels.HeadMoments`, without a gradient; fields not asked for are None.

    Raises:
        TypeError: If ``x`` is not floating point or ``mask`` not boolean.
        ValueError: If shapes do not fit, or a statistic is unknown.

    Source: Principal component analysis; The geometry of BERT, arXiv 2502.12033 (cone).

    Example:
        >>> moments = head_moments(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]]))
        >>> moments.mean, moments.scatter
        (tensor([[0., 2.]]), tensor([[[0., 0.],
                 [0., 2.]]]))
    """
    check_one_of("backend", backend, BACKENDS)
    wanted = check_wanted(statistics, MOMENTS)
    as_float(x[:0] if isinstance(x, Tensor) and x.ndim > 3 else x, "x", "h n d")
    if x.ndim != 4:
        raise ValueError(
            f"Expected `x` to have shape [batch, head, token, head_dim] but got {list(x.shape)}."
        )
    if mask is not None:
        shape = torch.Size([x.shape[0], x.shape[2]])
        check_mask(mask, shape)
        mask = mask.expand(shape)
    return kernels.head_moments(x, mask, wanted, backend)


def _shares(spectrum: Tensor, name: str) -> Tensor:
    """Divide a spectrum ``[..., d]`` by its sum: NaN if that is zero, as 0/0 is."""
    # covariance matrices have no negative eigenvalue but rounding gives them some
    spectrum = as_float(spectrum, name, "d").clamp(min=0)
    return spectrum / spectrum.sum(-1, keepdim=True)


def effective_rank(singular_values: Tensor) -> Tensor:
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
        >>> effective_rank(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
        tensor([4., 1.])
    """
    return shannon_entropy(_shares(singular_values, "singular_values")).exp()


@computes("effective_rank")
def _effective_rank(eigenvalues: Tensor) -> Tensor:
    return effective_rank(as_float(eigenvalues, "eigenvalues", "d").clamp(min=0).sqrt())


@computes("participation_ratio")
def participation_ratio(eigenvalues: Tensor) -> Tensor:
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
        >>> participation_ratio(torch.tensor([3.0, 1.0]))
        tensor(1.6000)
    """
    return 1 / _shares(eigenvalues, "eigenvalues").square().sum(-1)


@computes("stable_rank")
def stable_rank(eigenvalues: Tensor) -> Tensor:
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
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(2.)
    """
    return 1 / top_share(eigenvalues)


@computes("top_share")
def top_share(eigenvalues: Tensor) -> Tensor:
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
        >>> top_share(torch.tensor([2.0, 1.0, 1.0]))
        tensor(0.5000)
    """
    return _shares(eigenvalues, "eigenvalues").amax(-1)


def principal_subspace(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""Spectrum of a covariance and the subspace of its ``rank`` strongest directions.

    Args:
        covariance: Symmetric ``[..., d, d]``, any floating point type.
        rank: Dimensions of the subspace, 1 to d.

    Returns:
        All eigenvalues ``[..., d]``, descending, and the basis ``[..., d, rank]`` with orthonormal columns,
        strongest first (each up to its sign). Eigenvalues at rounding level, the negative ones among
        them, are 0: their square roots would still count in :func:`effective_rank`. Where fewer than
        ``rank`` are left, nothing but rounding would choose the basis and it is NaN; both are NaN where
        the covariance is not finite.

    Raises:
        TypeError: If ``covariance`` is not floating point.
        ValueError: If it is not square, or ``rank`` does not fit.

    Source: Principal component analysis; rounding level as ``torch.linalg.matrix_rank``.

    Example:
        >>> eigenvalues, basis = principal_subspace(torch.diag(torch.tensor([1.0, 3.0, 0.0])), rank=1)
        >>> eigenvalues, basis.abs().T
        (tensor([3., 1., 0.]), tensor([[0., 1., 0.]]))
    """
    covariance = as_float(covariance, "covariance", "d d")
    width = covariance.shape[-1]
    if not 1 <= rank <= width:
        raise ValueError(f"Expected `rank` to be between 1 and d = {width} but got {rank}.")
    # eigh raises on one bad matrix of a batch: let it cost that one only
    finite = covariance.isfinite().all(-1).all(-1)
    eigenvalues, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], covariance, 0.0))
    eigenvalues = eigenvalues.flip(-1)
    rounding = torch.finfo(covariance.dtype).eps * width * eigenvalues[..., :1]
    eigenvalues = torch.where(eigenvalues > rounding, eigenvalues, 0.0)
    defined = eigenvalues[..., rank - 1] > 0
    basis = torch.where(defined[..., None, None], vectors.flip(-1)[..., :rank], torch.nan)
    return torch.where(finite[..., None], eigenvalues, torch.nan), basis


def _bases(u: Tensor, v: Tensor, *, equal: bool) -> tuple[Tensor, Tensor]:
    u, v = as_float(u, "u", "d r"), as_float(v, "v", "d r")
    for name, basis in (("u", u), ("v", v)):
        if not 1 <= basis.shape[-1] <= basis.shape[-2]:
            raise ValueError(
                f"Expected `{name}` to hold 1 to d basis vectors as columns, [..., d, r], but got "
                f"{list(basis.shape)}. Transpose it if its rows are the vectors."
            )
    if u.shape[-2] != v.shape[-2] or (equal and u.shape[-1] != v.shape[-1]):
        same = "d and r" if equal else "d"
        raise ValueError(
            f"Expected `u` and `v` of shape [..., d, r] with equal {same} but got "
            f"{list(u.shape)} and {list(v.shape)}."
        )
    return u, v


def principal_angles(u: Tensor, v: Tensor) -> Tensor:
    r"""Principal angles between the column spaces of ``u`` and ``v``.

    Their cosines are the singular values of :math:`Q_u^\top Q_v`, their sines those of
    :math:`Q_v - Q_u Q_u^\top Q_v` (Q: the columns made orthonormal). Both are used: the cosine alone
    cannot tell angles below 3e-4 from 0 in float32.

    Args:
        u: ``[..., d, r]``, linearly independent columns, 1 <= r <= d.
        v: ``[..., d, s]``, the same for s.

    Returns:
        ``[..., min(r, s)]`` in radians, ascending, in [0, π/2]; NaN where an argument is not finite.

    Raises:
        TypeError: If an argument is not floating point.
        ValueError: If shapes do not fit.

    Source: Björck & Golub 1973; Knyazev & Argentati 2002 (sine-based).

    Example:
        >>> u = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> v = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> principal_angles(u, v)
        tensor([0.0000, 0.7854])
    """
    u, v = _bases(u, v, equal=False)
    dtype = torch.promote_types(u.dtype, v.dtype)
    if u.shape[-1] < v.shape[-1]:
        u, v = v, u
    finite = u.isfinite().all(-1).all(-1) & v.isfinite().all(-1).all(-1)
    # svdvals raises on one bad matrix of a batch: let it cost that one only
    u, v = (
        torch.linalg.qr(torch.where(finite[..., None, None], basis, 0.0).to(exact_dtype(basis))).Q
        for basis in (u, v)
    )
    cross = exact_matmul(u.mT, v)
    cosine = torch.linalg.svdvals(cross)
    sine = torch.linalg.svdvals(v - exact_matmul(u, cross)).flip(-1)
    return torch.where(finite[..., None], torch.atan2(sine, cosine).to(dtype), torch.nan)


@computes("qk_alignment")
def projection_similarity(u: Tensor, v: Tensor) -> Tensor:
    r"""How much of one subspace lies in another: the mean squared cosine of their principal angles.

    .. math:: \|U^\top V\|_F^2 / r

    1 for the same subspace, 0 for orthogonal ones, r/d on average for random ones.

    Args:
        u: ``[..., d, r]`` with orthonormal columns.
        v: ``[..., d, r]`` with orthonormal columns.

    Returns:
        ``[...]`` in [0, 1].

    Raises:
        TypeError: If an argument is not floating point.
        ValueError: If shapes do not fit.

    Source: Björck & Golub 1973 (principal angles).

    Example:
        >>> e = torch.eye(4)
        >>> projection_similarity(e[:, :2], e[:, 1:3])
        tensor(0.5000)
    """
    u, v = _bases(u, v, equal=True)
    similarity = exact_matmul(u.mT, v).square().sum((-2, -1)) / u.shape[-1]
    return similarity.clamp(max=1).to(torch.promote_types(u.dtype, v.dtype))


@computes("drift")
@computes("velocity")
def subspace_distance(u: Tensor, v: Tensor) -> Tensor:
    r"""Distance of two subspaces: the root mean squared sine of their principal angles.

    .. math:: \sqrt{1 - \|U^\top V\|_F^2 / r} = \|V - U U^\top V\|_F / \sqrt{r}

    Computed as on the right: 1 - similarity leaves nothing of a distance below 3e-4 in float32,
    while the residual keeps an absolute error near 1e-7 (as far as the columns are orthonormal).

    Args:
        u: ``[..., d, r]`` with orthonormal columns.
        v: ``[..., d, r]`` with orthonormal columns.

    Returns:
        ``[...]`` in [0, 1]: 0 the same subspace, 1 orthogonal.

    Raises:
        TypeError: If an argument is not floating point.
        ValueError: If shapes do not fit.

    Source: Chordal (projection F-norm) distance, Edelman, Arias & Smith 1998, divided by √r.

    Example:
        >>> u = torch.tensor([[1.0], [0.0]])
        >>> v = torch.tensor([[0.6], [0.8]])
        >>> subspace_distance(u, v)
        tensor(0.8000)
    """
    u, v = _bases(u, v, equal=True)
    residual = v - exact_matmul(u, exact_matmul(u.mT, v))
    distance: Tensor = torch.linalg.matrix_norm(residual) / u.shape[-1] ** 0.5
    return distance.clamp(max=1).to(torch.promote_types(u.dtype, v.dtype))


def qk_cosine(
    query: Tensor, key: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None
) -> Tensor:
    r"""Mean cosine over all pairs of a valid query and a valid key, whether one may see the other or not.

    .. math:: \frac{1}{n_q n_k} \sum_{ij} \cos(q_i, k_j)
              = \Big\langle \frac{1}{n_q} \sum_i \hat q_i, \frac{1}{n_k} \sum_j \hat k_j \Big\rangle

    A zero vector counts as cosine 0.

    Args:
        query: ``[..., H, Nq, D]``, any floating point type.
        key: ``[..., Hk, Nk, D]``, H a multiple of Hk: each key head serves H/Hk query heads in a row.
        query_mask: Boolean ``[..., Nq]`` (no head axis), True = real token. The rest has no influence.
        key_mask: Boolean ``[..., Nk]``, the same for keys.

    Returns:
        ``[..., H]`` in [-1, 1]; NaN where no query or no key is valid.

    Raises:
        TypeError: If ``query`` or ``key`` is not floating point or a mask not boolean.
        ValueError: If shapes do not fit.

    Source: Henry et al. 2020, Query-key normalization.

    Example:
        >>> query = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]])
        >>> qk_cosine(query, torch.tensor([[[5.0, 0.0], [0.0, 1.0]]]))
        tensor([0.5000])
    """
    fits = query.ndim == key.ndim >= 3 and query.shape[:-3] == key.shape[:-3]
    if not fits or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"Expected `query` [..., H, Nq, D] and `key` [..., Hk, Nk, D] to agree in D and in what is "
            f"left of the heads but got {list(query.shape)} and {list(key.shape)}."
        )
    (q, queries, _), (k, keys, _) = (
        sum_of_directions(x, None if mask is None else mask[..., None, :], name)
        for x, mask, name in ((query, query_mask, "query"), (key, key_mask, "key"))
    )
    return _cosine(q, queries, k, keys)


def _cosine(q: Tensor, queries: Tensor, k: Tensor, keys: Tensor) -> Tensor:
    """Mean cosine from sums of directions ``[..., H, D]`` and the numbers of tokens behind them."""
    cosines = (q * _for_query_heads(k, q.shape[-2], -2)).sum(-1)
    return (cosines / (queries * _for_query_heads(keys, q.shape[-2], -1))).clamp(-1, 1)


def _for_query_heads(x: Tensor, heads: int, dim: int) -> Tensor:
    """Repeat what belongs to a key head for each query head that it serves."""
    if heads % x.shape[dim]:
        raise ValueError(
            f"Expected the number of query heads to be a multiple of the number of key heads but got "
            f"{heads} and {x.shape[dim]}."
        )
    return x.repeat_interleave(heads // x.shape[dim], dim)


@computes("qk_cosine")
def _qk_cosine(call: ObservedCall) -> Tensor:
    (q, queries), (k, keys) = (_directions(moments) for moments in (call.query, call.key))
    return _cosine(q, queries, k, keys)


def _directions(moments: HeadMoments) -> tuple[Tensor, Tensor]:
    assert moments.directions is not None
    return moments.directions, moments.valid.sum(-1)[:, None].expand(moments.directions.shape[:2])


@computes("query_norm")
def _query_norm(call: ObservedCall) -> Tensor:
    return _mean_norm(call.query)


@computes("key_norm")
def _key_norm(call: ObservedCall) -> Tensor:
    assert call.query.norm is not None
    return _for_query_heads(_mean_norm(call.key), call.query.norm.shape[1], -1)


def _mean_norm(moments: HeadMoments) -> Tensor:
    assert moments.norm is not None
    return masked_mean(moments.norm, moments.valid[:, None])
