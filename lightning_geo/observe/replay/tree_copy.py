"""Copies a module tree as ``copy.deepcopy`` does, in a fraction of its time."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["WithoutGraph", "copy_tree"]

#: Types of attributes that a copy shares.
_SHARED = frozenset({type(None), bool, int, float, str, type, torch.dtype})


class WithoutGraph(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors with a graph, which it refuses; the copies have no graph.

    Args:
        leaves: Whether copies of leaves need no gradient either.
    """

    def __init__(self, *, leaves: bool = False) -> None:
        super().__init__()
        self._leaves = leaves

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and (self._leaves or not args[0].is_leaf):
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copy_tree(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module as ``copy.deepcopy(model, memo)`` does.

    ``deepcopy`` makes some twenty calls for each module, most of them for empty dicts of hooks. Modules that
    are pickled by their attributes alone are copied here without these calls.
    """
    copies: list[tuple[nn.Module, dict[str, Any]]] = []
    memo[id(copies)] = copies  # as long as the memo knows parts of a state by identity, they must live
    for module in model.modules():
        if id(module) not in memo and (state := _state_of(module)) is not None:
            memo[id(module)] = type(module).__new__(type(module))
            copies.append((memo[id(module)], state))
    for twin, state in reversed(copies):  # inner ones first
        twin.__setstate__({name: _copy(value, memo) for name, value in state.items()})
    copied: nn.Module = copy.deepcopy(model, memo)
    return copied


def _state_of(module: nn.Module) -> dict[str, Any] | None:
    """What pickling would keep of a module; ``None`` if it is copied or made in a way of its own."""
    kind = type(module)
    if kind in copyreg.dispatch_table or hasattr(module, "__deepcopy__"):
        return None
    reduced = module.__reduce_ex__(4)
    if isinstance(reduced, str) or any(reduced[3:]):
        return None
    made_by_its_class = reduced[:2] == (copyreg.__newobj__, (kind,))  # type: ignore[attr-defined]
    state = reduced[2] if made_by_its_class and len(reduced) > 2 else None
    return state if type(state) is dict else None


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _SHARED:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or (kind in (OrderedDict, set) and not value and not getattr(value, "__dict__", None)):
        new = memo[id(value)] = kind()
        if value:
            new.update({_copy(key, memo): _copy(item, memo) for key, item in value.items()})
        return new
    return copy.deepcopy(value, memo)
