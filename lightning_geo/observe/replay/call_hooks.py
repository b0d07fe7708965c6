"""Run a function before or after a module's calls, without leaving a trace in copies made meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_geo.utils._lightning import borrows_forward
from lightning_geo.utils._torch import compiled_call, remove_forward_hook, set_compiled_call

__all__ = ["Fleeting", "on_call", "on_return"]


class Fleeting:
    """A module hook that removes itself from every copy of the module.

    Args:
        hook: The function to call.
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
    """Replace a :class:`Fleeting` hook in a copy; removes itself at the copy's first call."""
    remove_forward_hook(module, _take_off)


def on_call(
    module: nn.Module, function: Callable[[tuple[Any, ...], dict[str, Any]], None]
) -> Callable[[], None]:
    """Run ``function(args, kwargs)`` before every call of ``module``; returns a function that undoes it.

    A module compiled in place runs its hooks inside the compiled code, where a new hook would change
    the graph. There the compiled call itself is wrapped, and the graph stays as it is.
    """
    compiled = compiled_call(module)
    if compiled is None:

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return  # the compiler traces an outer function: keep the hook out of its graph
            # Some strategies run a whole step through the module's call: this is no call of the model.
            if not borrows_forward(module):
                function(args, kwargs)

        return module.register_forward_pre_hook(Fleeting(hook), with_kwargs=True).remove

    call = compiled if isinstance(compiled, _HookedCall) else _HookedCall(compiled)
    if call is not compiled:
        set_compiled_call(module, call)
    call.hooks.append(function)

    def undo() -> None:
        if function in call.hooks:
            call.hooks.remove(function)
        if not call.hooks and compiled_call(module) is call:
            set_compiled_call(module, call.compiled)

    return undo


def on_return(module: nn.Module, function: Callable[[Any], None]) -> Callable[[], None]:
    """Run ``function(output)`` after every call of ``module``; returns a function that undoes it.

    Args:
        module: One that is not compiled.
        function: Is given what the call returns.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling() and not borrows_forward(module):
            function(output)

    return module.register_forward_hook(Fleeting(hook)).remove


class _HookedCall:
    """A compiled call that passes its arguments to hooks before it runs; hooks may go in any order."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self.compiled = compiled
        self.hooks: list[Callable[[tuple[Any, ...], dict[str, Any]], None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for hook in tuple(self.hooks):
            hook(args, kwargs)
        return self.compiled(*args, **kwargs)
