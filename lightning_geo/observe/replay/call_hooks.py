"""Be told of a module's calls, without a trace in copies that are made of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_geo.utils._lightning import borrows_forward
from lightning_geo.utils._torch import compiled_call, remove_forward_hook, set_compiled_call

__all__ = ["Fleeting", "on_call"]


class Fleeting:
    """A hook of a module that takes itself off every copy of the module.

    Args:
        hook: What it calls.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    def __call__(self, *args: Any) -> Any:
        return self._hook(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _take_off

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _the_stand_in, ()


def _the_stand_in() -> Callable[..., None]:
    return _take_off


def _take_off(module: nn.Module, *_: Any) -> None:
    """Stand in a copy for a hook of the original's, until the copy is first called."""
    remove_forward_hook(module, _take_off)


def on_call(
    module: nn.Module, function: Callable[[tuple[Any, ...], dict[str, Any]], None]
) -> Callable[[], None]:
    """Run ``function(args, kwargs)`` before every call of ``module``; returns what undoes it.

    A module compiled in place runs its hooks inside the compiled code, so there the compiled call
    itself is wrapped: the graph stays as it is.
    """
    compiled = compiled_call(module)
    if compiled is None:

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return  # inside somebody's compiled code: no part of it
            if not borrows_forward(module):  # else the call is a whole step's
                function(args, kwargs)

        return module.register_forward_pre_hook(Fleeting(hook), with_kwargs=True).remove

    call = compiled if isinstance(compiled, _ToldCall) else _ToldCall(compiled)
    if call is not compiled:
        set_compiled_call(module, call)
    call.listeners.append(function)

    def undo() -> None:
        if function in call.listeners:
            call.listeners.remove(function)
        if not call.listeners and compiled_call(module) is call:
            set_compiled_call(module, call.compiled)

    return undo


class _ToldCall:
    """A compiled call that tells listeners of its arguments first; of several, any may go first."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self.compiled = compiled
        self.listeners: list[Callable[[tuple[Any, ...], dict[str, Any]], None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for listener in tuple(self.listeners):
            listener(args, kwargs)
        return self.compiled(*args, **kwargs)
