"""What a head's parameters say: which directions it reads and writes, without any input.

A head's weights are ``[D, d]``: row by row what its vectors read of the stream (for the output: what each of
its features writes). With one head's W_q, W_k, W_v, W_o of that shape, M = W_qᵀ W_k scores pairs of tokens
and N = W_vᵀ W_o moves what is attended. Both are d×d and of rank D at most: everything here comes from D×D
Gram matrices. Biases are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from lightning_geo.functional._tensors import as_float, exact_dtype
from lightning_geo.functional.registry import computes
from lightning_geo.functional.subspace import effective_rank, stable_rank
from lightning_geo.kernels.scratch import scratch
from lightning_geo.schema import ROLES

__all__ = ["HeadWeights", "whitener"]

_QK, _OV = ("query", "key"), ("value", "output")

#: Features of the stream that are taken at a time where a layer's whole M is needed.
_TILE = 512

#: Rows of all heads together that are multiplied at a time.
_ROWS = 512


class HeadWeights:
    """The projections of one layer's heads, and what its metrics share.

    Args:
        query: ``[H, D, d]``, any floating point type.
        key: ``[Hk, D, d]``, H a multiple of Hk: query head h reads key head h // (H / Hk).
        value: ``[Hk, Dv, d]``.
        output: ``[H, Dv, d]``.
        heads: H.
        start: Those that ``weight_drift`` is against.

    Raises:
        TypeError: If one is no floating point tensor.
        ValueError: If shapes do not fit.

    Example:
        >>> weights = HeadWeights(query=torch.eye(4)[None, :2], key=torch.eye(4)[None, :2])
        >>> weights.gram("query")
        tensor([[[1., 0.],
                 [0., 1.]]])
    """

    def __init__(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        output: Tensor | None = None,
        heads: int | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        given = dict(zip(ROLES, (query, key, value, output), strict=True))
        # what lies along the columns of a weight is read across once, rather than by every product
        self.roles = {
            role: as_float(w.detach(), role, "h D d").contiguous()
            for role, w in given.items()
            if w is not None
        }
        #: roles whose start is what they are now
        self.unmoved = {role for role, w in given.items() if start and w is not None and start.get(role) is w}
        self.heads = heads or max((w.shape[0] for w in self.roles.values()), default=0)
        self.start = start
        self._grams: dict[str, Tensor] = {}
        self._overlaps: dict[str, Tensor] = {}
        for role, weight in self.roles.items():
            if weight.shape[0] == 0 or self.heads % weight.shape[0]:
                raise ValueError(
                    f"Expected `{role}` to be of a number of heads that divides {self.heads} "
                    f"but got {weight.shape[0]}."
                )
        for one, other in (_QK, _OV):
            if one in self.roles and other in self.roles:
                sizes = self.roles[one].shape[1], self.roles[other].shape[1]
                if sizes[0] != sizes[1]:
                    raise ValueError(
                        f"Expected `{one}` and `{other}` to have heads of one size but got {sizes}."
                    )

    def __getitem__(self, role: str) -> Tensor:
        return self.roles[role]

    def __contains__(self, role: str) -> bool:
        return role in self.roles

    def each(self, values: Tensor) -> Tensor:
        """Repeat what each key head has ``[Hk, ...]`` for the query heads that share it."""
        return values.repeat_interleave(self.heads // values.shape[0], dim=0)

    def gram(self, role: str) -> Tensor:
        """``[h, D, D]``, W Wᵀ."""
        if role not in self._grams:
            self._grams[role] = self[role] @ self[role].mT
        return self._grams[role]

    def across(self, left: str, right: str, dtype: torch.dtype | None = None) -> Tensor:
        """``[H, D, D']``, W_left W_rightᵀ of each query head."""
        return _grouped(self[left].to(dtype), self[right].to(dtype), self.heads)

    @cached_property
    def qk_spectrum(self) -> Tensor:
        """``[H, D]``, squared singular values of M = W_qᵀ W_k."""
        return _spectrum(self.each(self.gram("query")), self.each(self.gram("key")))

    @cached_property
    def ov_spectrum(self) -> Tensor:
        """``[H, D]``, squared singular values of N = W_vᵀ W_o."""
        return _spectrum(self.each(self.gram("value")), self.each(self.gram("output")))

    @cached_property
    def layer_form(self) -> tuple[Tensor, Tensor, Tensor]:
        """tr(MM), column norms and row norms of M summed over heads; two tiles of it at a time."""
        key = self["key"]
        query = self["query"]
        if key.shape[0] < query.shape[0]:  # what heads of one key read is added up
            query = query.unflatten(0, (key.shape[0], -1)).sum(1)
        query, key = query.flatten(0, 1), key.flatten(0, 1)
        width = query.shape[1]
        columns, rows = query.new_zeros(2, width)
        trace = query.new_zeros((), dtype=exact_dtype(query))
        parts = [slice(start, min(start + _TILE, width)) for start in range(0, width, _TILE)]
        for i, one in enumerate(parts):
            for other in parts[i:]:
                here = _product("here", query[:, one], key[:, other])
                there = here if other is one else _product("there", query[:, other], key[:, one])
                trace += (here * there.mT).sum() * (1 if other is one else 2)
                for tile, top, left in ((here, one, other), (there, other, one))[: 1 if other is one else 2]:
                    square = tile.square_()
                    rows[top] += square.sum(1)
                    columns[left] += square.sum(0)
        return trace, columns.sqrt(), rows.sqrt()

    def overlap(self, role: str) -> Tensor:
        """``[h, h]``, RV coefficients of the W_hᵀ W_h of every two heads."""
        if role not in self._overlaps:
            weight = self[role]
            heads, size, _ = weight.shape
            flat = weight.flatten(0, 1)
            step = max(1, _ROWS // size)
            squares = weight.new_zeros(heads, heads)
            for start in range(0, heads, step):
                stop = min(start + step, heads)
                # of two heads in either order: once
                rows, others = flat[start * size : stop * size], flat[start * size :]
                out = scratch("product", (rows.shape[0], others.shape[0]), flat)
                product = torch.mm(rows, others.mT, out=out)
                part = product.view(stop - start, size, heads - start, size).square().sum((1, 3))
                squares[start:stop, start:] = part
                squares[start:, start:stop] = part.mT
            own = squares.diagonal().sqrt()
            self._overlaps[role] = (squares / (own[:, None] * own)).clamp(max=1)
        return self._overlaps[role]


def whitener(weight: Tensor) -> Tensor:
    """What makes the rows of a weight orthonormal: (W Wᵀ)^-½ up to a rotation.

    Args:
        weight: ``[h, D, d]``, any floating point type.

    Returns:
        float64 ``[h, D, D]``, V with Vᵀ W of orthonormal rows; columns of zeros for what W does not span, and
        NaN for a head that is not finite.
    """
    weight = weight.to(exact_dtype(weight))
    gram = weight @ weight.mT
    finite = gram.isfinite().all((-2, -1))[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, gram, 0.0))
    # singular values below a hundred thousandth of the largest are rounding in a float32 product
    spanned = values > 1e-10 * values[..., -1:]
    scale = torch.where(spanned, torch.where(spanned, values, 1.0).rsqrt(), 0.0)
    return torch.where(finite, vectors * scale[..., None, :], torch.nan)


def _product(name: str, left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right, in memory that is used again."""
    return torch.mm(left.mT, right, out=scratch(name, (left.shape[1], right.shape[1]), left))


def _grouped(left: Tensor, right: Tensor, heads: int) -> Tensor:
    """``[H, D, D']``, left @ rightᵀ of each query head, either being of as many heads or fewer."""
    if left.shape[0] < right.shape[0]:
        return _grouped(right, left, heads).mT
    product: Tensor = left.unflatten(0, (right.shape[0], -1)).flatten(1, 2) @ right.mT
    return product.view(left.shape[0], left.shape[1], right.shape[1]).repeat_interleave(
        heads // left.shape[0], dim=0
    )


def _spectrum(first: Tensor, second: Tensor) -> Tensor:
    """Squared singular values, descending, of AᵀB from A Aᵀ and B Bᵀ ``[H, D, D]``; NaN for broken heads."""
    dtype = first.dtype
    first, second = (x.to(exact_dtype(x)) for x in (first, second))
    finite = (first + second).isfinite().all((-2, -1))[..., None, None]
    first, second = (torch.where(finite, x, 0.0) for x in (first, second))
    root, failed = torch.linalg.cholesky_ex(first)
    if failed.any():  # a head of fewer than D dimensions, by rounding or by pruning
        values, vectors = torch.linalg.eigh(first)
        root = vectors * values.clamp(min=0).sqrt()[..., None, :]
    # with A Aᵀ = R Rᵀ, Rᵀ B Bᵀ R has the eigenvalues of A Aᵀ B Bᵀ
    squares = torch.linalg.eigvalsh(root.mT @ second @ root).flip(-1).clamp(min=0)
    return torch.where(finite[..., 0], squares, torch.nan).to(dtype)


@computes("symmetry", reads=_QK)
def symmetry(weights: HeadWeights) -> Tensor:
    r"""Whether a head scores a pair of tokens alike in both directions.

    .. math:: \mathrm{tr}(M M) \,/\, \|M\|_F^2

    Args:
        weights: With query and key.

    Returns:
        ``[H]`` in [-1, 1]: 1 where M is symmetric, -1 where it is antisymmetric, about 0 for random weights.

    Source: Saponati et al. 2025, arXiv 2502.10927.
    """
    across = weights.across("key", "query").to(exact_dtype(weights["query"]))
    # rounding in a D×D product: the norm from the same type
    square = weights.each(weights.gram("query")) * weights.each(weights.gram("key"))
    trace = (across * across.mT).sum((-2, -1))
    return (trace / square.sum((-2, -1), dtype=trace.dtype)).clamp(-1, 1)


@computes("directionality", reads=_QK)
def directionality(weights: HeadWeights) -> Tensor:
    r"""Whether a few stream directions stand out on the key side of M or on its query side.

    .. math:: \frac{C - R}{C + R}, \quad C = \sum_j \max(c_j - t_c, 0), \quad t_c = \bar c + 2\, s_c

    over the column norms c of M (key side), R the same over its row norms (query side), s the sample
    standard deviation (n − 1).

    Args:
        weights: With query and key.

    Returns:
        ``[H]`` in [-1, 1]; 0 where nothing stands out. The figures of Saponati et al. show the opposite sign.

    Source: Saponati et al. 2025, arXiv 2502.10927.
    """
    query, key = weights["query"], weights["key"]
    shared = weights.heads // key.shape[0]
    # ‖M e_j‖² = w_kjᵀ (W_q W_qᵀ) w_kj
    grams = weights.gram("query").unflatten(0, (-1, shared)).flatten(1, 2)
    out = scratch("product", (*grams.shape[:2], key.shape[2]), key)
    products = torch.bmm(grams, key, out=out).view(key.shape[0], shared, *key.shape[1:])
    columns = products.mul_(key[:, None]).sum(-2).flatten(0, 1)
    grouped, out = query.unflatten(0, (-1, shared)), scratch("product", tuple(key.shape), key)
    rows = torch.stack(
        [
            torch.bmm(weights.gram("key"), grouped[:, i], out=out).mul_(grouped[:, i]).sum(-2)
            for i in range(shared)
        ],
        dim=1,
    ).flatten(0, 1)
    return _direction(columns.clamp(min=0).sqrt(), rows.clamp(min=0).sqrt())


def _direction(columns: Tensor, rows: Tensor) -> Tensor:
    """(C − R)/(C + R) of norms ``[..., d]``; 0 where nothing stands out."""
    over, under = (
        (x - (x.mean(-1, keepdim=True) + 2 * x.std(-1, keepdim=True))).clamp(min=0).sum(-1)
        for x in (columns, rows)
    )
    total = over + under
    return torch.where(total == 0, 0.0, (over - under) / torch.where(total == 0, 1.0, total))


@computes("layer_symmetry", reads=_QK)
def layer_symmetry(weights: HeadWeights) -> Tensor:
    """Compute :func:`symmetry` of a layer's M, summed over its heads: a scalar."""
    trace, columns, _ = weights.layer_form
    return (trace / columns.square().sum(dtype=trace.dtype)).clamp(-1, 1)


@computes("layer_directionality", reads=_QK)
def layer_directionality(weights: HeadWeights) -> Tensor:
    """Compute :func:`directionality` of a layer's M, summed over its heads: a scalar."""
    _, columns, rows = weights.layer_form
    return _direction(columns, rows)


@computes("qk_effective_rank", reads=_QK)
def qk_effective_rank(weights: HeadWeights) -> Tensor:
    """Effective rank ``[H]`` of M (entropy of its singular values, Roy & Vetterli 2007)."""
    return effective_rank(weights.qk_spectrum.sqrt())


@computes("qk_stable_rank", reads=_QK)
def qk_stable_rank(weights: HeadWeights) -> Tensor:
    """Stable rank ``[H]`` of M: ‖M‖²_F / σ₁²."""
    return stable_rank(weights.qk_spectrum)


@computes("qk_norm", reads=_QK)
def qk_norm(weights: HeadWeights) -> Tensor:
    """Frobenius norm ``[H]`` of M."""
    return weights.qk_spectrum.sum(-1).sqrt()


@computes("ov_effective_rank", reads=_OV)
def ov_effective_rank(weights: HeadWeights) -> Tensor:
    """Effective rank ``[H]`` of N (entropy of its singular values, Roy & Vetterli 2007)."""
    return effective_rank(weights.ov_spectrum.sqrt())


@computes("ov_stable_rank", reads=_OV)
def ov_stable_rank(weights: HeadWeights) -> Tensor:
    """Stable rank ``[H]`` of N: ‖N‖²_F / σ₁²."""
    return stable_rank(weights.ov_spectrum)


@computes("ov_norm", reads=_OV)
def ov_norm(weights: HeadWeights) -> Tensor:
    """Frobenius norm ``[H]`` of N."""
    return weights.ov_spectrum.sum(-1).sqrt()


@computes("read_overlap")
def read_overlap(weights: HeadWeights, role: str) -> Tensor:
    r"""How well the most similar other head of the layer reads the same directions.

    .. math:: \max_{h' \ne h} \frac{\mathrm{tr}(A_h A_{h'})}{\|A_h\|_F \, \|A_{h'}\|_F}, \quad A = W^\top W

    Args:
        weights: With that role; where query heads share a key head, the other key heads are compared.
        role: Of :data:`~lightning_geo.schema.ROLES`.

    Returns:
        ``[H]`` in [0, 1]; NaN where there is no other head.

    Source: Robert & Escoufier 1976 (RV coefficient).
    """
    overlap = weights.overlap(role)
    itself = torch.eye(overlap.shape[0], dtype=torch.bool, device=overlap.device)
    others = torch.where(itself | overlap.isnan(), -1.0, overlap).amax(-1)
    defined = (others >= 0) & ~overlap.diagonal().isnan()
    return weights.each(torch.where(defined, others, torch.nan))


@computes("write_overlap", reads=("output",))
def write_overlap(weights: HeadWeights) -> Tensor:
    """Compute :func:`read_overlap` of what heads write: ``[H]``."""
    return read_overlap(weights, "output")


@computes("weight_drift")
def weight_drift(weights: HeadWeights, role: str) -> Tensor:
    r"""How far the directions that a head reads or writes have moved, with their weights.

    .. math:: 1 - \frac{\mathrm{tr}(A A_0)}{\|A\|_F \, \|A_0\|_F}, \quad A = W^\top W

    in the stream, so that a turned read direction counts; a rotation within the head's own space, or
    a change of scale, does not.

    Args:
        weights: With that role, and with ``start``.
        role: Of :data:`~lightning_geo.schema.ROLES`.

    Returns:
        ``[H]`` in [0, 1]; NaN without a start of the same shape.

    Source: Robert & Escoufier 1976 (RV coefficient).
    """
    now = weights[role]
    start = None if weights.start is None else weights.start.get(role)
    if start is None or start.shape[0] != now.shape[0] or start.shape[2] != now.shape[2]:
        return now.new_full((weights.heads,), torch.nan)
    own = torch.linalg.matrix_norm(weights.gram(role))
    if role in weights.unmoved:  # against itself: rounding is no drift, but NaN stays
        return weights.each(own * 0.0)
    start = as_float(start.to(now.device), "start", "h D d").to(now.dtype)
    before = start @ start.mT
    theirs = torch.linalg.matrix_norm(before)
    # ½ ‖A/‖A‖ − A₀/‖A₀‖‖² from what the rows differ by: 1 − RV itself would lose a small drift
    first = torch.mul(start, theirs.rsqrt()[:, None, None], out=scratch("start", tuple(now.shape), now))
    step = torch.mul(now, own.rsqrt()[:, None, None], out=scratch("step", tuple(now.shape), now)).sub_(first)
    before, mixed, steps = before / theirs[:, None, None], first @ step.mT, step @ step.mT
    distance = 2 * before * steps + 2 * mixed * mixed.mT + steps.square() + 4 * mixed * steps
    distance = distance.sum((-2, -1))
    return weights.each((distance / 2).clamp(0, 1))
