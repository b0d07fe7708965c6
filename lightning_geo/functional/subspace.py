"""Subspaces: which directions a role uses, and how far apart two subspaces are."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional._decompositions import by_lapack
from lightning_geo.functional._tensors import as_float, exact_dtype, exact_matmul
from lightning_geo.kernels.precision import is_finite
from lightning_geo.kernels.workspace import where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.shapes import Float

__all__ = ["principal_angles", "principal_subspace", "projection_similarity", "subspace_distance"]


def principal_subspace(
    covariance: Float[Tensor, "*batch d d"], rank: int
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d {rank}"]]:
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
        raise ArgumentError(f"Expected `rank` to be between 1 and d = {width} but got {rank}.")
    # eigh raises on one bad matrix of a batch: let it cost that one only
    finite = is_finite(covariance).flatten(-2).all(-1)
    covariance = torch.where(finite[..., None, None], covariance, 0.0)
    eigenvalues, vectors = by_lapack(torch.linalg.eigh, covariance)
    eigenvalues = eigenvalues.flip(-1)
    rounding = torch.finfo(eigenvalues.dtype).eps * eigenvalues.shape[-1] * eigenvalues[..., :1]
    eigenvalues = torch.where(eigenvalues > rounding, eigenvalues, 0.0)
    defined = eigenvalues[..., rank - 1] > 0
    basis = where_defined(defined[..., None, None], vectors.flip(-1)[..., :rank])
    return where_defined(finite[..., None], eigenvalues), basis


def _bases(
    u: Float[Tensor, "*#batch d r"], v: Float[Tensor, "*#batch d s"], *, equal: bool
) -> tuple[Float[Tensor, "*#batch d r"], Float[Tensor, "*#batch d s"]]:
    u, v = as_float(u, "u", "d r"), as_float(v, "v", "d r")
    for name, basis in (("u", u), ("v", v)):
        if not 1 <= basis.shape[-1] <= basis.shape[-2]:
            raise ArgumentError(
                f"Expected `{name}` to hold 1 to d basis vectors as columns, [..., d, r], but got "
                f"{list(basis.shape)}. Transpose it if its rows are the vectors."
            )
    if u.shape[-2] != v.shape[-2] or (equal and u.shape[-1] != v.shape[-1]):
        same = "d and r" if equal else "d"
        raise ArgumentError(
            f"Expected `u` and `v` of shape [..., d, r] with equal {same} but got "
            f"{list(u.shape)} and {list(v.shape)}."
        )
    return u, v


def principal_angles(
    u: Float[Tensor, "*#batch d r"], v: Float[Tensor, "*#batch d s"]
) -> Float[Tensor, "*#batch angles"]:
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
        by_lapack(_orthonormal, torch.where(finite[..., None, None], basis, 0.0).to(exact_dtype(basis)))
        for basis in (u, v)
    )
    cross = exact_matmul(u.mT, v)
    cosine = by_lapack(torch.linalg.svdvals, cross)
    sine = by_lapack(torch.linalg.svdvals, v - exact_matmul(u, cross)).flip(-1)
    return where_defined(finite[..., None], torch.atan2(sine, cosine).to(dtype))


def _orthonormal(columns: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch d r"]:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


@computes("qk_alignment", reads=("basis.query", "basis.key"))
def projection_similarity(
    u: Float[Tensor, "*#batch d r"], v: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch"]:
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


@computes("drift", reads=("basis", "basis.baseline"))
@computes("velocity", reads=("basis", "basis.previous"))
def subspace_distance(
    u: Float[Tensor, "*#batch d r"], v: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch"]:
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
