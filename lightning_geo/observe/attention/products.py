"""Batched matrix products in every notation, with their rows, columns and factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Product", "is_product", "product_of"]

_ADDING: frozenset[Any] = frozenset({torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_})
_PRODUCTS: frozenset[Any] = _ADDING | {
    torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__, Tensor.__rmatmul__, torch.einsum,
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """One batched product of two tensors.

    Args:
        factors: The two tensors that are multiplied.
        letters: Einsum letters of the factors and the result; empty for matmul.
    """

    factors: tuple[Tensor, Tensor]
    letters: tuple[str, str, str] = ("", "", "")

    @property
    def axes(self) -> tuple[int, int]:
        """Axes (negative) of the result: the first factor's rows, the second's."""
        if not self.letters[0]:
            return -2, -1
        out = self.letters[2]
        return tuple(out.index(self._own(side)) - len(out) for side in (0, 1))  # type: ignore[return-value]

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Both factors as [..., rows, inner], the leading axes in the result's order."""
        if not self.letters[0]:
            return self.factors[0], self.factors[1].mT
        lead = "".join(c for c in self.letters[2] if c not in (self._own(0), self._own(1)))
        (inner,) = set(self.letters[0]) & set(self.letters[1]) - set(self.letters[2])
        one, two = (
            _arranged(self.factors[side], self.letters[side], lead, self._own(side) + inner)
            for side in (0, 1)
        )
        return one, two

    def with_values(self, result: Tensor, side: int, rows: int, columns: int) -> tuple[Tensor, Tensor] | None:
        """Return values and outputs, if the factor ``side`` holds probabilities.

        Args:
            result: Result of the product.
            side: Number of the factor that holds probabilities.
            rows: Its axis of queries.
            columns: Its axis of keys.

        Returns:
            Values [..., Nk, D] and outputs [..., Nq, D], in the order of the probabilities' leading axes;
            None if the product does not sum over keys.
        """
        other = self.factors[1 - side]
        if not self.letters[0]:
            if (side, rows, columns) == (0, -2, -1):
                return other, result
            return (other.mT, result.mT) if (side, rows, columns) == (1, -1, -2) else None
        own, theirs, out = self.letters[side], self.letters[1 - side], self.letters[2]
        row, column = own[rows], own[columns]
        feature = set(theirs) & set(out) - set(own)
        if column not in theirs or column in out or row in theirs or row not in out or len(feature) != 1:
            return None
        lead = "".join(c for c in own if c not in (row, column))
        if not set(lead) <= set(out) or not set(theirs) <= {*lead, column, *feature}:
            return None
        (feature_letter,) = feature
        return (
            _arranged(other, theirs, lead, column + feature_letter),
            _arranged(result, out, lead, row + feature_letter),
        )

    def _own(self, side: int) -> str:
        """Return the letter of a factor's rows: the last one in the result that the other factor lacks."""
        other = self.letters[1 - side]
        return [c for c in self.letters[2] if c in self.letters[side] and c not in other][-1]


def is_product(func: Any) -> bool:
    """Whether a torch function multiplies batches of matrices."""
    return func in _PRODUCTS


def product_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
    """Return the product of two batches of matrices; None for any other call."""
    values = [*args, *kwargs.values()]
    if func is torch.einsum:
        operands = values[1] if isinstance(values[1], (list, tuple)) else values[1:]
        return _einsum(values[0], operands) if isinstance(values[0], str) else None
    if func in _ADDING:
        values = values[1:]
    factors = [x for x in values if isinstance(x, Tensor) and x.dim() >= 3]
    if func is Tensor.__rmatmul__:
        factors.reverse()
    return Product((factors[0], factors[1])) if len(factors) == 2 else None


def _einsum(equation: str, operands: Any) -> Product | None:
    names, arrow, out = equation.replace(" ", "").partition("->")
    letters = names.split(",")
    if not arrow or len(operands) != 2 or not all(c.isalpha() for c in "".join([*letters, out])):
        return None
    if any(len(set(word)) != len(word) or len(word) < 3 for word in letters):
        return None
    one, two = (set(word) for word in letters)
    whole = set(out)
    own = len(one & whole - two), len(two & whole - one)
    if min(own) != 1 or len(one & two - whole) != 1:  # leading axes of the factors differ
        return None
    return Product((operands[0], operands[1]), (letters[0], letters[1], out))


def _arranged(x: Tensor, letters: str, lead: str, last: str) -> Tensor:
    """Permute to the axes ``lead + last``, with size 1 for a missing leading axis."""
    order = [letters.index(c) for c in lead + last if c in letters]
    # Records belong to tensors, and a view would have none: return the tensor itself where possible.
    if order != sorted(order):
        x = x.permute(order)
    for i, letter in enumerate(lead):
        if letter not in letters:
            x = x.unsqueeze(i)
    return x
