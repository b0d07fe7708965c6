"""Recognise modules and functions from ``torch.compile``, and run them eagerly for a while."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import nn

from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.utils._torch import (
    compiled_from,
    compiler_stance,
    is_compiled_function,
    is_compiled_module,
)

__all__ = ["as_compiled", "compiles_attention", "eagerly", "is_compiled"]

#: Functions that compute attention.
_ATTENTION = frozenset({"flex_attention", "scaled_dot_product_attention", "softmax"})


def is_compiled(model: nn.Module) -> bool:
    """Whether any module runs through ``torch.compile``: wrapped, in place, or its ``forward`` alone."""
    return any(
        is_compiled_module(m) or is_compiled_function(m.forward)
        for m in model.modules()
        if not is_scripted(m)
    )


def compiles_attention(model: nn.Module) -> bool:
    """Whether the model is compiled, or its code holds a compiled function that computes attention.

    A compiled ``flex_attention`` usually is: a global in the file of a module's class, or an attribute of the
    class or of the module.
    """
    if is_compiled(model):
        return True
    modules = list(model.modules())
    kinds = {kind for m in modules for kind in type(m).__mro__ if not _is_of_torch(kind)}
    files = {kind.__module__ for kind in kinds}
    places = [*map(vars, modules), *map(vars, kinds)]
    places += [vars(sys.modules[name]) for name in files if name in sys.modules]
    return any(_attends(value) for place in places for value in tuple(place.values()))


def _is_of_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins")


def _attends(value: Any) -> bool:
    """Whether a value is a compiled attention function, or a compiled function that mentions one."""
    # Check the type first: `hasattr` on arbitrary objects can run their code, such as lazy imports.
    if not isinstance(value, FunctionType) or not is_compiled_function(value):
        return False
    inside = compiled_from(value)
    names = getattr(getattr(inside, "__code__", None), "co_names", ())
    return getattr(inside, "__name__", None) in _ATTENTION or not _ATTENTION.isdisjoint(names)


#: Stances of the compiler before each open :func:`eagerly` changed it, the outermost first.
_stances: list[str] = []


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Run compiled models, and compiled functions such as ``flex_attention``, eagerly inside the context."""
    stance = compiler_stance()
    if stance is None:  # the compiler is not loaded, so that nothing is compiled
        yield
        return
    _stances.append(stance)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _stances.pop()


@contextlib.contextmanager
def as_compiled() -> Iterator[None]:
    """Undo :func:`eagerly` for one attention function, whose inside is not observed."""
    with torch.compiler.set_stance(_stances[0]) if _stances else contextlib.nullcontext():
        yield
