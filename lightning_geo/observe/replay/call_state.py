"""Copies of arguments that a forward pass may change, such as caches and lists."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.observe.replay.tree_copy import WithoutGraph

__all__ = ["CONSTANT", "holds_state", "independent"]

#: Types that no forward pass changes, or that are meant to be shared.
CONSTANT = (
    type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.Size,
    nn.Module, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial,
)  # fmt: skip


def independent(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy arguments so that a call cannot change the caller's.

    Tensors passed directly are inputs, and shared. Lists, dictionaries and objects are copied, including
    their tensors; objects that cannot be copied are shared.
    """
    # A tensor passed both directly and in a list stays one tensor.
    memo = {id(x): x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
    with WithoutGraph(leaves=True):
        return tuple(_copy(x, memo) for x in args), {name: _copy(x, memo) for name, x in kwargs.items()}


def holds_state(value: Any) -> bool:
    """Whether a value contains an object that a forward pass may change, such as a cache."""
    if isinstance(value, Mapping):
        return any(map(holds_state, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_state, value))
    return not isinstance(value, (Tensor, *CONSTANT))


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, (Tensor, *CONSTANT)):
        return value
    if isinstance(value, torch.Generator):
        return value.clone_state()
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # streams, process groups and locks refuse to be copied
        return value
