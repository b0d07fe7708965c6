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

    The scores are what softmax over the last axis of a 4-D tensor is given, provided that a
    matrix product of their shape came before; the head outputs are the next product that starts
    from probabilities of that shape. With several products before the softmax (deberta adds two
    for relative positions), the first is content with content.

    Args:
        emit: Called with each finished attention call.
    """

    def __init__(self, emit: Callable[[AttentionCall], None]) -> None:
        self._emit = emit
        self._products: list[tuple[torch.Size, Tensor, Tensor]] = []
        self._pending: Tensor | None = None

    def flush(self) -> None:
        """A module ended: scores that still wait for their product are emitted alone."""
        if self._pending is not None:
            self._finish(None, None)

    def clear(self) -> None:
        """Forget what was seen, and every tensor with it."""
        self._products.clear()
        self._pending = None

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
        """Take one torch function and its result; whether it was the softmax of an attention."""
        if func in _MATMULS:
            factors = _operands(func, args, kwargs)
            if factors is None:
                return False
            left, right = factors
            if self._pending is not None and _fits(left.shape, self._pending):
                self._finish(right, result)
            else:
                self._products.append((result.shape, left, right))
        elif func in _SOFTMAX and result.dim() == 4:
            scores = args[0] if args else kwargs["input"]
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (-1, 3) and any(_fits(shape, scores) for shape, _, _ in self._products):
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
            if _fits(shape, scores):
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


def _operands(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The two factors of a batched product, the right one as [..., inner, columns]."""
    given = [*args, *kwargs.values()]
    if func is torch.einsum:
        given = [given[0], *given[1]] if isinstance(given[1], (list, tuple)) else given
        left, _, result = given[0].replace(" ", "").partition("->")
        first, _, second = left.partition(",")
        flipped = result[:-2] + result[-1:] + first[-1:]  # bhid,bhjd->bhij
        plain = result[:-2] + first[-1:] + result[-1:]  # bhij,bhjd->bhid
        if first[:-1] != result[:-1] or second not in (flipped, plain) or len(given) != 3:
            return None
        return given[1], given[2].transpose(-2, -1) if second == flipped else given[2]
    if func in _ADDING:
        given = given[1:]
    factors = [x for x in given if isinstance(x, Tensor) and x.dim() >= 3]
    return (factors[0], factors[1]) if len(factors) >= 2 else None


def _fits(shape: torch.Size, scores: Tensor) -> bool:
    """Same matrices, whether batch and heads are one axis or two."""
    return shape[-2:] == scores.shape[-2:] and shape.numel() == scores.numel()


def _heads(x: Tensor, batch: int, heads: int) -> Tensor | None:
    """[B, h, N, D] or [B*h, N, D] to [B, h, N, D], h dividing H; ``None`` where it is neither."""
    if x.dim() == 4:
        return x if x.shape[0] == batch and heads % x.shape[1] == 0 else None
    return x.unflatten(0, (batch, -1)) if x.dim() == 3 and x.shape[0] % batch == 0 else None
