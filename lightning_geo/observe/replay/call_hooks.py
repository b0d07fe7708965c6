"""Be told of a module's calls, without a trace in copies that are made of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

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
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook is _take_off]:
            del hooks[key]
    for keys in (
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ):
        for key in [k for k in keys if k not in {**module._forward_pre_hooks, **module._forward_hooks}]:
            del keys[key]


def on_call(
    module: nn.Module, function: Callable[[tuple[Any, ...], dict[str, Any]], None]
) -> Callable[[], None]:
    """Run ``function(args, kwargs)`` before every call of ``module``; returns what undoes it.

    A module compiled in place runs its hooks inside the compiled code, so there the compiled call
    itself is wrapped: the graph stays as it is.
    """
    if module._compiled_call_impl is None:

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return  # inside somebody's compiled code: no part of it
            if getattr(module.forward, "__name__", "forward") != "wrapped_forward":
                function(args, kwargs)  # else Lightning borrows the module's call for a whole step

        return module.register_forward_pre_hook(Fleeting(hook), with_kwargs=True).remove

    call = module._compiled_call_impl
    if not isinstance(call, _ToldCall):
        call = module._compiled_call_impl = _ToldCall(call)
    call.listeners.append(function)

    def undo() -> None:
        if function in call.listeners:
            call.listeners.remove(function)
        if not call.listeners and module._compiled_call_impl is call:
            module._compiled_call_impl = call.compiled

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
