"""Finds whether batch or heads varies slower in an axis that holds both, by the function that joined them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.evidence.tensor_table import TensorTable

__all__ = ["Fold", "Folds"]

_RESHAPES: frozenset[Any] = frozenset({
    Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten, Tensor.contiguous,
})  # fmt: skip
_CATS: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.concatenate})

#: Sizes of the two joined axes, the slower first, and their strides.
Fold = tuple[tuple[int, int], tuple[int, int]]


class Folds:
    """Tracks tensors of three axes, one of them joined from batch and heads.

    It recognises [a, b, N, D] -> [a·b, N, D], [N, B, d] -> [N, B·H, D] (features split off into the batch
    axis), and heads split off one by one and concatenated, ``cat(x.split(D, -1), 0)``.
    """

    def __init__(self) -> None:
        self._known: TensorTable[Fold] = TensorTable()

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def heads_first(self, x: Tensor, heads: int) -> bool | None:
        """Whether heads vary slower than sequences on the first axis; None if unknown.

        Args:
            x: [B·H, N, D].
            heads: H.
        """
        known = self._known.get(x)
        if known is None or 1 in known[0]:
            return None if known is None and x.shape[0] not in (1, heads) else False
        (first, second), strides = known
        if first != second:
            return first == heads
        if strides[0] != strides[1]:  # heads are closer together in memory than sequences
            return strides[0] < strides[1]
        return None

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow a torch function that returned."""
        if not isinstance(result, Tensor) or result.dim() not in (3, 4) or not args:
            return
        x = args[0]
        if func in _CATS:
            self._joined(x, kwargs.get("dim", args[1] if len(args) > 1 else 0), result)
        elif func in _RESHAPES and isinstance(x, Tensor):
            self._reshaped(x, result)
        elif len(self._known):
            for y in args:
                known = self._known.get(y)
                if known is not None and result.dim() == y.dim():
                    self._known.set(result, known)
                    break

    def _reshaped(self, x: Tensor, result: Tensor) -> None:
        known = self._known.get(x)
        if x.dim() == 4 and result.shape == (x.shape[0] * x.shape[1], *x.shape[2:]):
            self._known.set(result, ((x.shape[0], x.shape[1]), (x.stride(0), x.stride(1))))
        elif x.dim() == 3 and result.dim() == 3 and result.shape[0] == x.shape[0]:
            parts = result.shape[1] // max(x.shape[1], 1)
            if parts > 1 and result.shape[2] * parts == x.shape[2]:
                self._known.set(result, ((x.shape[1], parts), (parts * result.shape[2], result.shape[2])))
        elif known is not None and x.shape == result.shape:
            self._known.set(result, known)

    def _joined(self, parts: Any, dim: Any, result: Tensor) -> None:
        if dim == 0 and isinstance(parts, (tuple, list)) and len({p.shape for p in parts}) == 1:
            self._known.set(result, ((len(parts), parts[0].shape[0]), (1, 2)))
