"""One layer's parameters per head, and the products of them that its metrics share.

A head's weights are ``[D, d]``: each row is the direction of the stream that one of its features reads (for
the output: writes). With one head's W_q, W_k, W_v, W_o of that shape, M = W_qᵀ W_k scores pairs of tokens
and N = W_vᵀ W_o moves the attended tokens. Both are d×d and of rank D at most: everything here comes from D×D
Gram matrices. Biases are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from lightning_geo.functional._tensors import as_float, exact_dtype
from lightning_geo.functional.head_products import HeadProducts
from lightning_geo.kernels.workspace import scratch
from lightning_geo.metrics.spec import ROLES
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.shapes import Float

__all__ = ["OV", "QK", "HeadWeights"]

#: The roles that make M, and those that make N.
QK, OV = ("query", "key"), ("value", "output")

#: Features of the stream that are taken at a time where a layer's whole M is needed.
_TILE = 512

#: Rows of all heads together that are multiplied at a time.
_ROWS = 512


class HeadWeights(HeadProducts):
    """The projections of one layer's heads, and the products that its metrics share.

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
        query: Float[Tensor, "H D d"] | None = None,
        key: Float[Tensor, "Hk D d"] | None = None,
        value: Float[Tensor, "Hv Dv d"] | None = None,
        output: Float[Tensor, "Ho Dv d"] | None = None,
        heads: int | None = None,
        start: Mapping[str, Float[Tensor, "_ _ _"]] | None = None,
    ) -> None:
        weights = dict(zip(ROLES, (query, key, value, output), strict=True))
        # a transposed weight is copied once, rather than read across memory by every product
        self.roles = {
            role: as_float(w.detach(), role, "h D d").contiguous()
            for role, w in weights.items()
            if w is not None
        }
        #: roles whose weights are their start, unchanged
        self.unmoved = {
            role for role, w in weights.items() if start and w is not None and start.get(role) is w
        }
        heads = heads or max((w.shape[0] for w in self.roles.values()), default=0)
        super().__init__(heads, {}, next((w.dtype for w in self.roles.values()), torch.float32))
        self.start = start
        self._overlaps: dict[str, Tensor] = {}
        for role, weight in self.roles.items():
            if weight.shape[0] == 0 or self.heads % weight.shape[0]:
                raise ArgumentError(
                    f"Expected `{role}` to be of a number of heads that divides {self.heads} "
                    f"but got {weight.shape[0]}."
                )
        for one, other in (QK, OV):
            if one in self.roles and other in self.roles:
                sizes = self.roles[one].shape[1], self.roles[other].shape[1]
                if sizes[0] != sizes[1]:
                    raise ArgumentError(
                        f"Expected `{one}` and `{other}` to have heads of one size but got {sizes}."
                    )

    def __getitem__(self, role: str) -> Float[Tensor, "h D d"]:
        return self.roles[role]

    def __contains__(self, role: str) -> bool:
        return role in self.roles

    def product(self, name: str) -> Float[Tensor, "h D1 D2"]:
        """Return the product of that name, computed when it is first asked for."""
        if name not in self.products:
            kind, *roles = name.split(".")
            exact = exact_dtype(self[roles[0]])
            if kind == "across":
                left, right = (self[role].to(exact) for role in roles)
                self.products[name] = _grouped(left, right, max(len(left), len(right)))
            else:
                weight = self[roles[0]].to(exact) if kind == "exact_gram" else self[roles[0]]
                self.products[name] = weight @ weight.mT
        return super().product(name)

    def across(self, left: str, right: str) -> Float[Tensor, "H D1 D2"]:
        """``[H, D, D']``, W_left W_rightᵀ of each query head."""
        return _grouped(self[left], self[right], self.heads)

    @cached_property
    def layer_form(self) -> tuple[Float[Tensor, ""], Float[Tensor, " d"], Float[Tensor, " d"]]:
        """tr(MM), column norms and row norms of M summed over heads; two tiles of it at a time."""
        key = self["key"]
        query = self["query"]
        if key.shape[0] < query.shape[0]:  # M is linear in the queries: those of one key head are summed
            query = query.unflatten(0, (key.shape[0], -1)).sum(1)
        query, key = query.flatten(0, 1), key.flatten(0, 1)
        width = query.shape[1]
        columns, rows = query.new_zeros(2, width)
        trace = query.new_zeros((), dtype=exact_dtype(query))
        parts = [slice(start, min(start + _TILE, width)) for start in range(0, width, _TILE)]
        for i, one in enumerate(parts):
            for other in parts[i:]:
                upper = _product("upper", query[:, one], key[:, other])
                lower = upper if other is one else _product("lower", query[:, other], key[:, one])
                trace += (upper * lower.mT).sum() * (1 if other is one else 2)
                for tile, top, left in ((upper, one, other), (lower, other, one))[: 1 if other is one else 2]:
                    square = tile.square_()
                    rows[top] += square.sum(1)
                    columns[left] += square.sum(0)
        return trace, columns.sqrt(), rows.sqrt()

    def overlap(self, role: str) -> Float[Tensor, "h h"]:
        """``[h, h]``, RV coefficients of the W_hᵀ W_h of every two heads."""
        if role not in self._overlaps:
            weight = self[role]
            heads, size, _ = weight.shape
            flat = weight.flatten(0, 1)
            step = max(1, _ROWS // size)
            squares = weight.new_zeros(heads, heads)
            for start in range(0, heads, step):
                stop = min(start + step, heads)
                # each pair of heads once
                rows, others = flat[start * size : stop * size], flat[start * size :]
                out = scratch("product", (rows.shape[0], others.shape[0]), flat)
                product = torch.mm(rows, others.mT, out=out)
                part = product.view(stop - start, size, heads - start, size).square().sum((1, 3))
                squares[start:stop, start:] = part
                squares[start:, start:stop] = part.mT
            own = squares.diagonal().sqrt()
            self._overlaps[role] = (squares / (own[:, None] * own)).clamp(max=1)
        return self._overlaps[role]


def _product(name: str, left: Float[Tensor, "n d1"], right: Float[Tensor, "n d2"]) -> Float[Tensor, "d1 d2"]:
    """leftᵀ right, in memory that is used again."""
    return torch.mm(left.mT, right, out=scratch(name, (left.shape[1], right.shape[1]), left))


def _grouped(
    left: Float[Tensor, "h1 D1 d"], right: Float[Tensor, "h2 D2 d"], heads: int
) -> Float[Tensor, "{heads} D1 D2"]:
    """``[H, D, D']``, left @ rightᵀ of each query head, either being of as many heads or fewer."""
    if left.shape[0] < right.shape[0]:
        return _grouped(right, left, heads).mT
    product: Tensor = left.unflatten(0, (right.shape[0], -1)).flatten(1, 2) @ right.mT
    return product.view(left.shape[0], left.shape[1], right.shape[1]).repeat_interleave(
        heads // left.shape[0], dim=0
    )
