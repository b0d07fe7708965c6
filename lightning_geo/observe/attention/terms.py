"""Masks and biases that models apply to scores between the product and the softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Term", "is_sum", "keeps_visibility", "term_of"]

_ADD: frozenset[Any] = frozenset({
    torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__,
})  # fmt: skip
_SUBTRACT: frozenset[Any] = frozenset({
    torch.sub, torch.subtract, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__,
})  # fmt: skip
_FILL: frozenset[Any] = frozenset({torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_})
_WHERE: frozenset[Any] = frozenset({torch.where, Tensor.where})

#: Names of functions that change layout or type, or squash values, whatever their other arguments.
_LOOKING = frozenset({
    "view", "reshape", "unflatten", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "repeat",
    "permute", "transpose", "swapaxes", "swapdims", "movedim", "get", "contiguous", "clone", "detach", "to",
    "type", "type_as", "float", "half", "bfloat16", "double", "getitem", "chunk", "split", "unbind", "narrow",
    "select", "neg", "tanh", "requires_grad",
})  # fmt: skip
#: Names of functions that multiply or divide: they never hide keys, since a score of 0 is visible.
_SCALING = frozenset({
    "mul", "imul", "rmul", "multiply", "div", "truediv", "itruediv", "divide", "true_divide",
})  # fmt: skip

#: Fill values at or below this hide.
_HIDING = -50.0


@dataclass(frozen=True)
class Term:
    """A mask applied to scores.

    Args:
        mask: Bool, True where a key stays visible; or additive. Broadcastable to ``shape``.
        shape: Shape of the scores when it was applied.
        axes: Their axes of rows and columns at that time.
    """

    mask: Tensor
    shape: torch.Size
    axes: tuple[int, int]


def term_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scores: Tensor, axes: tuple[int, int]
) -> Term | None:
    """Return the mask that a function applied to scores with these axes; None if it applied none."""
    given = [*args, *kwargs.values()]
    others = [x for x in given if isinstance(x, Tensor) and x is not scores]
    mask: Tensor | None = None
    if func in _ADD or func in _SUBTRACT:
        # An integer term counts too: some models add `(1 - mask) * -10000`.
        if len(others) == 1 and others[0].dtype != torch.bool:
            factor = kwargs.get("alpha", 1) * (-1 if func in _SUBTRACT else 1)
            if given[0] is scores:
                mask = others[0].to(scores.dtype) * factor if factor != 1 else others[0].to(scores.dtype)
            elif "alpha" not in kwargs:  # in `mask - scores` the mask keeps its sign
                mask = others[0].to(scores.dtype)
    elif func in _FILL and len(given) == 3:
        if _hides(given[2]):
            mask = ~given[1].bool()
    elif func in _WHERE and len(given) == 3:
        condition, yes, no = (given[1], given[0], given[2]) if func is Tensor.where else given
        if yes is scores and _hides(no):
            mask = condition.bool()
        elif no is scores and _hides(yes):
            mask = ~condition.bool()
    if mask is None or mask.dim() > scores.dim() or mask.dim() == 0:
        return None
    return Term(mask, scores.shape, axes)


def is_sum(func: Any) -> bool:
    """Whether a torch function adds or subtracts."""
    return func in _ADD or func in _SUBTRACT


def keeps_visibility(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scores: Tensor) -> bool:
    """Whether a function that applies no mask surely hides no key: it changes layout, scales or squashes."""
    name = getattr(func, "__name__", "").strip("_")
    if name in _SCALING or func is F.dropout:
        return True
    others = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x is not scores]
    return (name in _LOOKING or is_sum(func)) and all(x.numel() <= 1 for x in others)


def _hides(value: Any) -> bool:
    """Whether a fill value hides. A tensor on a device is assumed to, rather than wait for its value."""
    if isinstance(value, Tensor):
        return value.device.type != "cpu" or bool((value <= _HIDING).all())
    return isinstance(value, (int, float)) and value <= _HIDING
