"""Small products of heads' weights, D×D for heads of size D, and their decompositions.

Spectra and subspaces of weights ``[D, d]`` need no more than D×D matrices. These are computed where the
weights are, and may be decomposed elsewhere and later.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from lightning_geo.functional._decompositions import by_lapack
from lightning_geo.functional._tensors import exact_dtype
from lightning_geo.kernels.workspace import where_defined
from lightning_geo.utils.shapes import Float

__all__ = ["HeadProducts", "whitener"]

#: Largest ratio of the eigenvalues of W Wᵀ: singular values below a hundred thousandth of the largest are
#: rounding in a float32 product.
_SPANNED = 1e10


class HeadProducts:
    """Products of the weights of one layer's heads, or of several layers' heads one after the other.

    ``gram.query`` is W Wᵀ ``[h, D, D]``, ``exact_gram.query`` the same in float64, ``across.query.value`` is
    W_query W_valueᵀ ``[H, D, D']`` in float64; likewise for the other roles.

    Args:
        heads: H, a multiple of each h: query head i shares key head i // (H / h).
        products: By name.
        dtype: Of results.

    Example:
        >>> products = HeadProducts(1, {f"gram.{role}": torch.eye(2)[None] for role in ("query", "key")})
        >>> products.qk_spectrum
        tensor([[1., 1.]])
    """

    def __init__(
        self, heads: int, products: Mapping[str, Float[Tensor, "_ _ _"]], dtype: torch.dtype = torch.float32
    ) -> None:
        self.heads = heads
        self.products = dict(products)
        self.dtype = dtype
        self._whiteners: dict[str, Tensor] = {}

    def product(self, name: str) -> Float[Tensor, "h D1 D2"]:
        """Return the product of that name."""
        return self.products[name]

    def each(self, values: Float[Tensor, "Hk ..."]) -> Float[Tensor, "H ..."]:
        """Repeat the values of key heads ``[Hk, ...]`` for the query heads that share them."""
        return values.repeat_interleave(self.heads // values.shape[0], dim=0)

    def gram(self, role: str) -> Float[Tensor, "h D D"]:
        """``[h, D, D]``, W Wᵀ."""
        return self.product(f"gram.{role}")

    def whitener(self, role: str) -> Float[Tensor, "h D D"]:
        """``[h, D, D]``, see :func:`whitener`."""
        if role not in self._whiteners:
            self._whiteners[role] = whitener(self.product(f"exact_gram.{role}"))
        return self._whiteners[role]

    @cached_property
    def qk_spectrum(self) -> Float[Tensor, "H D"]:
        """``[H, D]``, squared singular values of M = W_qᵀ W_k."""
        return _spectrum(self.each(self.gram("query")), self.each(self.gram("key")))

    @cached_property
    def ov_spectrum(self) -> Float[Tensor, "H D"]:
        """``[H, D]``, squared singular values of N = W_vᵀ W_o."""
        return _spectrum(self.each(self.gram("value")), self.each(self.gram("output")))


def whitener(gram: Float[Tensor, "*batch D D"]) -> Float[Tensor, "*batch D D"]:
    """Matrix that makes the rows of a weight orthonormal: (W Wᵀ)^-½ up to a rotation.

    Args:
        gram: float64 ``[..., D, D]``, W Wᵀ.

    Returns:
        ``[..., D, D]``, V with Vᵀ W of orthonormal rows; columns of zeros where W has fewer than D
        dimensions, and NaN for a head that is not finite.
    """
    finite = gram.isfinite().all(-1).all(-1)[..., None, None]
    white: Tensor = by_lapack(_whitened, torch.where(finite, gram, 0.0))
    return where_defined(finite, white)


def _whitened(gram: Float[Tensor, "*batch D D"]) -> Float[Tensor, "*batch D D"]:
    """:func:`whitener` of finite matrices ``[..., D, D]``."""
    root, failed = torch.linalg.cholesky_ex(gram)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram)
    inverse = torch.linalg.solve_triangular(root, identity, upper=False)
    # 1/tr(G⁻¹) is no more than the smallest eigenvalue of G, and tr(G) no less than the largest
    condition = inverse.square().sum((-2, -1)) * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    doubtful = (failed != 0) | ~(condition < _SPANNED)
    white: Tensor = inverse.mT
    if doubtful.any():  # a head that may have fewer than D dimensions, by pruning or by rounding
        values, vectors = torch.linalg.eigh(gram[doubtful])
        spanned = values * _SPANNED > values[..., -1:]
        scale = torch.where(spanned, torch.where(spanned, values, 1.0).rsqrt(), 0.0)
        white[doubtful] = vectors * scale[..., None, :]
    return white


def _spectrum(first: Float[Tensor, "H D D"], second: Float[Tensor, "H D D"]) -> Float[Tensor, "H D"]:
    """Squared singular values, descending, of AᵀB from A Aᵀ and B Bᵀ ``[H, D, D]``; NaN for broken heads."""
    dtype = first.dtype
    first, second = (x.to(exact_dtype(x)) for x in (first, second))
    finite = (first + second).isfinite().all((-2, -1))[..., None, None]
    first, second = (torch.where(finite, x, 0.0) for x in (first, second))
    squares = by_lapack(_eigenvalues_of_product, first, second).flip(-1).clamp(min=0)
    return where_defined(finite[..., 0], squares).to(dtype)


def _eigenvalues_of_product(
    first: Float[Tensor, "*batch D D"], second: Float[Tensor, "*batch D D"]
) -> Float[Tensor, "*batch D"]:
    """Eigenvalues, ascending, of the products of positive semidefinite matrices ``[n, D, D]``."""
    root, failed = torch.linalg.cholesky_ex(first)
    if failed.any():  # a head of fewer than D dimensions, by rounding or by pruning
        values, vectors = torch.linalg.eigh(first)
        root = vectors * values.clamp(min=0).sqrt()[..., None, :]
    # with A Aᵀ = R Rᵀ, Rᵀ B Bᵀ R has the eigenvalues of A Aᵀ B Bᵀ
    eigenvalues: Tensor = torch.linalg.eigvalsh(root.mT @ second @ root)
    return eigenvalues
