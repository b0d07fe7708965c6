"""The numbers of "The geometry of BERT" (arXiv 2502.12033), without its n×n matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_geo.functional._decompositions import by_lapack
from lightning_geo.functional._tensors import as_float, exact_dtype, shannon_entropy
from lightning_geo.functional.observed_call import ObservedScores, ScoreSpectra
from lightning_geo.kernels.pairs import score_histogram
from lightning_geo.kernels.workspace import where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.shapes import Bool, Float

__all__ = [
    "SYMMETRIC_PRODUCTS",
    "WHOLE_PRODUCTS",
    "ScoreProducts",
    "score_entropy",
    "score_products",
    "score_spectrum",
    "von_neumann_entropy",
]

#: Bins of the histogram of scores.
_BINS = 20

#: Names of the products that the spectrum of scores comes from, and that of their symmetric part.
WHOLE_PRODUCTS = ("key_query",)
SYMMETRIC_PRODUCTS = (*WHOLE_PRODUCTS, "query_query", "key_key")


@computes("score_entropy", reads=("scores",))
def score_entropy(scores: ObservedScores) -> Float[Tensor, "batch heads"]:
    r"""Shannon entropy of the histogram of all scores that a head gives in a sequence.

    .. math:: -\sum_b h_b \ln h_b

    h being the shares of the dot products q·k of visible pairs in 20 equal bins between the smallest and
    the largest of them; scale and bias do not matter or are left out.

    Args:
        scores: The attention call.

    Returns:
        ``[B, H]`` in [0, ln 20]: near 0 where nearly all scores are alike but for a few far off.

    Source: The geometry of BERT, arXiv 2502.12033.
    """
    counts = score_histogram(scores.problem, _BINS)
    return shannon_entropy(counts / counts.sum(-1, keepdim=True))


def von_neumann_entropy(
    query: Float[Tensor, "*batch n dim"],
    key: Float[Tensor, "*batch n dim"],
    mask: Bool[Tensor, "*#batch #n"] | None = None,
    *,
    symmetric: bool = False,
    paper: bool = False,
) -> Float[Tensor, "*batch"]:
    r"""Entropy of the spectrum of the matrix of scores S = QKᵀ, or of its symmetric part (S + Sᵀ)/2.

    .. math:: -\sum_i a_i \ln a_i, \quad a_i = |\lambda_i|^2 / \textstyle\sum_j |\lambda_j|^2

    The non-zero eigenvalues of QKᵀ are those of the D×D KᵀQ; those of the symmetric part, ½ [Q K] [K Q]ᵀ, are
    those of the 2D×2D ½ [K Q]ᵀ [Q K]. Causality and masks within the sequence play no part.

    Args:
        query: ``[..., n, D]``, any floating point type.
        key: ``[..., n, D]``, of the same tokens.
        mask: Bool ``[..., n]``, sizes equal or 1, True = real token; None if all are.
        symmetric: Take the symmetric part.
        paper: Normalise as the authors do, a = \|λ\| / √Σ\|λ\|², whose sum is not 1: no entropy, but what
            they plot.

    Returns:
        ``[...]`` in nats, at most ln D (symmetric: ln 2D; with ``paper`` larger), float32 (float64 stays);
        NaN for inputs that are not finite or zero.

    Raises:
        TypeError: If an argument is not floating point.
        ValueError: If shapes do not fit.

    Source: The geometry of BERT, arXiv 2502.12033.

    Example:
        >>> von_neumann_entropy(torch.eye(4), torch.eye(4))  # ln 4
        tensor(1.3863)
    """
    query, key = as_float(query, "query", "n d"), as_float(key, "key", "n d")
    if query.shape[-2:] != key.shape[-2:]:
        raise ArgumentError(
            "Expected `query` and `key` to be of the same tokens and size, [..., n, d], "
            f"but got {list(query.shape)} and {list(key.shape)}."
        )
    size = score_spectrum(query, key, mask, symmetric=symmetric)
    return _entropy_of(size, paper=paper).to(query.dtype)


def score_spectrum(
    query: Float[Tensor, "*batch n dim"],
    key: Float[Tensor, "*batch n dim"],
    mask: Bool[Tensor, "*#batch #n"] | None = None,
    *,
    symmetric: bool = False,
) -> Float[Tensor, "*batch sizes"]:
    """Absolute eigenvalues of the matrix of scores or of its symmetric part, those that can differ from 0.

    Args:
        query: See :func:`von_neumann_entropy`.
        key: Likewise.
        mask: Likewise.
        symmetric: Likewise.

    Returns:
        float64 ``[..., D]``, symmetric ``[..., 2 D]``, in no order; NaN for inputs that are not finite.
    """
    names = SYMMETRIC_PRODUCTS if symmetric else WHOLE_PRODUCTS
    products = ScoreProducts(score_products(query, key, mask, names), query.dtype)
    return products.symmetric_spectrum if symmetric else products.spectrum


@dataclass(frozen=True)
class ScoreProducts:
    """Products of queries and keys of the same tokens, from which the spectra of their scores come.

    Args:
        products: float64 by name: ``key_query`` KᵀQ ``[..., H, D, D]``, and for the symmetric part
            ``query_query`` and ``key_key``, of as many heads or fewer.
        dtype: Of results, at least float32.
    """

    products: Mapping[str, Float[Tensor, "... D D"]]
    dtype: torch.dtype

    def __len__(self) -> int:
        """Sequences, if these are the first axis."""
        return len(next(iter(self.products.values())))

    def first_sequences(self, count: int) -> ScoreProducts:
        """Return the products of the first sequences alone."""
        return ScoreProducts({name: x[:count] for name, x in self.products.items()}, self.dtype)

    @functools.cached_property
    def spectrum(self) -> Float[Tensor, "*batch D"]:
        """``[..., D]``, the absolute eigenvalues of QKᵀ that can differ from 0, in float64."""
        return _eigenvalues(_sizes, self.products["key_query"])

    @functools.cached_property
    def symmetric_spectrum(self) -> Float[Tensor, "*batch sizes"]:
        """``[..., 2 D]``, likewise of the symmetric part."""
        mixed, query, key = (self.products[name] for name in SYMMETRIC_PRODUCTS)
        if key.shape != query.shape:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        return _eigenvalues(
            _symmetric_sizes, torch.cat([torch.cat([query, mixed.mT], -1), torch.cat([mixed, key], -1)], -2)
        )


def score_products(
    query: Float[Tensor, "*batch n dim"],
    key: Float[Tensor, "*keys n dim"],
    mask: Bool[Tensor, "*#batch #n"] | None,
    names: Iterable[str],
) -> dict[str, Float[Tensor, "... dim dim"]]:
    """Compute the products of :class:`ScoreProducts`.

    Args:
        query: See :func:`von_neumann_entropy`; ``[..., H, n, D]`` if there are fewer heads of keys.
        key: Likewise.
        mask: Likewise.
        names: Of the products.
    """
    query, key = (x.to(exact_dtype(x)) for x in (query, key))
    if mask is not None:  # padding adds eigenvalues that are zero
        query, key = (torch.where(mask[..., None], x, 0.0) for x in (query, key))
    sides = {"query": query, "key": key}
    products = {}
    for name in names:
        left, right = (sides[side] for side in name.split("_"))
        if left.shape[:-2] != right.shape[:-2]:
            left = left.repeat_interleave(right.shape[-3] // left.shape[-3], dim=-3)
        products[name] = left.mT @ right
    return products


def _eigenvalues(
    decompose: Callable[[Float[Tensor, "*batch D D"]], Float[Tensor, "*batch D"]],
    small: Float[Tensor, "*batch D D"],
) -> Float[Tensor, "*batch D"]:
    finite = small.isfinite().all(-1).all(-1)[..., None]
    sizes: Tensor = by_lapack(decompose, torch.where(finite[..., None], small, 0.0))
    return where_defined(finite, sizes)


def _sizes(matrices: Float[Tensor, "*batch D D"]) -> Float[Tensor, "*batch D"]:
    sizes: Tensor = torch.linalg.eigvals(matrices).abs()
    return sizes


def _symmetric_sizes(grams: Float[Tensor, "*batch E E"]) -> Float[Tensor, "*batch E"]:
    """Absolute eigenvalues of A J Aᵀ, J exchanging the halves of A's columns and halving, from AᵀA."""
    values, vectors = torch.linalg.eigh(grams)
    # with AᵀA = R Rᵀ they are those of Rᵀ J R, which is symmetric too
    root = vectors * values.clamp(min=0).sqrt()[..., None, :]
    first, second = root.chunk(2, -2)
    product = first.mT @ second
    sizes: Tensor = torch.linalg.eigvalsh((product + product.mT) / 2).abs()
    return sizes


def _entropy_of(size: Float[Tensor, "*batch sizes"], *, paper: bool) -> Float[Tensor, "*batch"]:
    total = size.square().sum(-1, keepdim=True)
    share = size / total.sqrt() if paper else size.square() / total
    return where_defined(size.isfinite().all(-1), shannon_entropy(share))


def _of_call(
    scores: ScoreSpectra, spectrum: Float[Tensor, "*batch sizes"], *, paper: bool
) -> Float[Tensor, "*batch"]:
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return _entropy_of(spectrum, paper=paper).to(dtype)


@computes("von_neumann_entropy", reads=("scores",), products=WHOLE_PRODUCTS)
def _whole(scores: ScoreSpectra) -> Float[Tensor, "*batch heads"]:
    return _of_call(scores, scores.spectrum, paper=False)


@computes("von_neumann_entropy.paper", reads=("scores",), products=WHOLE_PRODUCTS)
def _whole_paper(scores: ScoreSpectra) -> Float[Tensor, "*batch heads"]:
    return _of_call(scores, scores.spectrum, paper=True)


@computes("von_neumann_entropy.symmetric", reads=("scores",), products=SYMMETRIC_PRODUCTS)
def _symmetric(scores: ScoreSpectra) -> Float[Tensor, "*batch heads"]:
    return _of_call(scores, scores.symmetric_spectrum, paper=False)


@computes("von_neumann_entropy.symmetric.paper", reads=("scores",), products=SYMMETRIC_PRODUCTS)
def _symmetric_paper(scores: ScoreSpectra) -> Float[Tensor, "*batch heads"]:
    return _of_call(scores, scores.symmetric_spectrum, paper=True)
