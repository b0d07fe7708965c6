"""Arguments that a forward may change: caches grow by what they are given, lists by what is appended."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["holds_state", "independent"]

#: Types of what no forward changes, or is meant to share.
_CONSTANT = (
    type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.Size,
    nn.Module, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial,
)  # fmt: skip


def independent(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy arguments so that a call leaves the caller's as they are.

    Tensors given as such are inputs, and shared. What lies in lists, dictionaries and objects is copied, with
    its tensors; what cannot be copied is shared.
    """
    # a tensor that is given twice, alone and in a list, stays one tensor
    memo = {id(x): x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
    with _Clones():
        return tuple(_copy(x, memo) for x in args), {name: _copy(x, memo) for name, x in kwargs.items()}


def holds_state(value: Any) -> bool:
    """Whether there is an object in it that a forward may change, such as a cache."""
    if isinstance(value, Mapping):
        return any(map(holds_state, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_state, value))
    return not isinstance(value, (Tensor, *_CONSTANT))


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, (Tensor, *_CONSTANT)):
        return value
    if isinstance(value, torch.Generator):
        return value.clone_state()
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # it refuses: streams, process groups, locks
        return value


class _Clones(TorchFunctionMode):
    """Copy tensors that have a graph too, which ``copy.deepcopy`` refuses to; the copies have none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
