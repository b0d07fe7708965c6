"""Attention written out as matmul, softmax, matmul (deberta, bloom, mpnet, gpt-j, ...)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.taps.call import AttentionCall

__all__ = ["TRACED", "SoftmaxTracer"]

_ADDING: frozenset[Any] = frozenset({torch.baddbmm, Tensor.baddbmm})
_MATMULS: frozenset[Any] = _ADDING | {
    torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__, torch.einsum,
}  # fmt: skip
_SOFTMAX: frozenset[Any] = frozenset({F.softmax, torch.softmax, Tensor.softmax})
#: What :meth:`SoftmaxTracer.see` wants to see.
TRACED = _MATMULS | _SOFTMAX


class SoftmaxTracer:
    """Recognises attention in a stream of torch functions.

    The scores are what softmax over the last axis of a 4-D tensor is given (3-D with batch and heads
    in one, where the module says how many heads), provided that a matrix product of their shape came
    before; the head outputs are the next product that starts from probabilities of that shape. With
    several products before the softmax (deberta adds two for relative positions), the first is
    content with content.

    Args:
        emit: Called with each finished attention call.
    """

    def __init__(self, emit: Callable[[AttentionCall], None]) -> None:
        self._emit = emit
        self._products: list[tuple[torch.Size, Tensor | None, Tensor | None]] = []
        self._pending: Tensor | None = None

    def flush(self) -> None:
        """A module ended: scores that still wait for their product are emitted alone."""
        if self._pending is not None:
            self._finish(None, None)

    def clear(self) -> None:
        """Forget what was seen, and every tensor with it."""
        self._products.clear()
        self._pending = None

    def see(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, heads: int | None = None
    ) -> bool:
        """Take one torch function and its result; whether it was the softmax of an attention.

        ``heads`` of the running module tells batch and heads apart where they are one axis.
        """
        if func in _MATMULS:
            product = _product(func, args, kwargs, result)
            if product is None:
                return False
            left, right, result = product
            if self._pending is not None and left is not None and _fits(left.shape, self._pending):
                self._finish(right, result)
            else:
                self._products.append((result.shape, left, right))
        elif func in _SOFTMAX and result.dim() in (3, 4):
            scores = args[0] if args else kwargs["input"]
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            over_keys = dim in (-1, scores.dim() - 1)
            if scores.dim() == 3 and heads and scores.shape[0] % heads == 0:
                scores = scores.unflatten(0, (-1, heads))
            known = over_keys and scores.dim() == 4
            if known and any(_fits(shape, scores) for shape, _, _ in self._products):
                self.flush()
                self._pending = scores
                return True
        return False

    def _finish(self, value: Tensor | None, output: Tensor | None) -> None:
        scores, self._pending = self._pending, None
        assert scores is not None
        batch, heads, queries, keys = scores.shape
        query = key = None
        for shape, left, right in self._products:
            if left is not None and right is not None and _fits(shape, scores):
                query = _heads(left, batch, heads)
                key = _heads(right.transpose(-2, -1), batch, heads)
                break
        self._products.clear()
        self._emit(
            AttentionCall(
                query=query,
                key=key,
                value=None if value is None else _heads(value, batch, heads),
                output=None if output is None else _heads(output, batch, heads),
                scores=scores,
                cross=queries != keys,
            )
        )


def _product(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor] | None:
    """A batched product as [..., rows, inner], [..., inner, columns], [..., rows, columns]."""
    given = [*args, *kwargs.values()]
    if func is torch.einsum:
        operands = given[1] if isinstance(given[1], (list, tuple)) else given[1:]
        if len(operands) != 2:  # not understood, but it may have made scores
            return None, None, result
        return _einsum(given[0], operands[0], operands[1], result)
    if func in _ADDING:
        given = given[1:]
    factors = [x for x in given if isinstance(x, Tensor) and x.dim() >= 3]
    return (factors[0], factors[1], result) if len(factors) >= 2 else None


def _einsum(
    equation: str, first: Tensor, second: Tensor, result: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Permute what einsum multiplied (``bihd,bjhd->bhij``) into a batched product, rows first."""
    operands, _, out = equation.replace(" ", "").partition("->")
    one, _, two = operands.partition(",")
    rows, columns = set(out) & set(one) - set(two), set(out) & set(two) - set(one)
    inner = set(one) & set(two) - set(out)
    letters = set(one) | set(two) | set(out)
    if any(len(axes) != 1 for axes in (rows, columns, inner)) or not all(c.isalpha() for c in letters):
        return None, None, result
    (row,), (column,), (summed,) = rows, columns, inner
    if out.index(row) > out.index(column):
        one, two, first, second, row, column = two, one, second, first, column, row
    batch = "".join(c for c in out if c not in (row, column))
    if len(one) != len(batch) + 2 or len(two) != len(batch) + 2:
        return None, None, result
    left, right, product = (
        x.permute([named.index(c) for c in batch + axes])
        for x, named, axes in (
            (first, one, row + summed), (second, two, summed + column), (result, out, row + column)
        )
    )  # fmt: skip
    return left, right, product


def _fits(shape: torch.Size, scores: Tensor) -> bool:
    """Same matrices, whether batch and heads are one axis or two."""
    return shape[-2:] == scores.shape[-2:] and shape.numel() == scores.numel()


def _heads(x: Tensor, batch: int, heads: int) -> Tensor | None:
    """[B, h, N, D] or [B*h, N, D] to [B, h, N, D], h dividing H; ``None`` where it is neither."""
    if x.dim() == 4:
        return x if x.shape[0] == batch and heads % x.shape[1] == 0 else None
    return x.unflatten(0, (batch, -1)) if x.dim() == 3 and x.shape[0] % batch == 0 else None
