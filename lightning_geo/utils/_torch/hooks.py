"""Private names of the hooks of modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules import module as _module

__all__ = [
    "FORWARD_HOOKS",
    "OTHER_HOOKS",
    "filter_forward_hooks",
    "forward_hooks",
    "global_forward_hooks",
    "remove_forward_hook",
    "without_backward_hooks",
]

#: Attributes of a module that hold hooks: those that run with a forward, and others. Checked on torch 2.13.0.
FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
OTHER_HOOKS = (
    "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def forward_hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """The dictionaries in which a module keeps its hooks before and after forward.

    Relies on ``Module._forward_pre_hooks`` and ``_forward_hooks``; checked on torch 2.13.0.
    """
    return module._forward_pre_hooks, module._forward_hooks


def filter_forward_hooks(module: nn.Module, keep: Callable[[dict[int, Any]], dict[int, Any]]) -> None:
    """Give a module new dictionaries with some of its forward hooks; the earlier ones stay as they are.

    Relies on ``Module._forward_pre_hooks`` and ``_forward_hooks``; checked on torch 2.13.0.
    """
    module._forward_hooks = OrderedDict(keep(module._forward_hooks))
    module._forward_pre_hooks = OrderedDict(keep(module._forward_pre_hooks))


def remove_forward_hook(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Take a function off a module wherever it is a forward hook, its options included.

    For a copy of a module, whose hooks no handle can remove. Relies on the dictionaries of forward hooks and
    of their options, ``Module._forward…_hooks…``; checked on torch 2.13.0.
    """
    for hooks in forward_hooks(module):
        for key in [key for key, candidate in hooks.items() if candidate is hook]:
            del hooks[key]
    for keys in (
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ):
        for key in [k for k in keys if k not in {**module._forward_pre_hooks, **module._forward_hooks}]:
            del keys[key]


def without_backward_hooks(module: nn.Module) -> None:
    """Give a module new, empty dictionaries of backward hooks; the earlier ones stay as they are.

    Relies on ``Module._backward_hooks`` and ``_backward_pre_hooks``; checked on torch 2.13.0.
    """
    module._backward_hooks = OrderedDict()
    module._backward_pre_hooks = OrderedDict()


def global_forward_hooks() -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """Hooks of all modules of the process: before forward, after it, and which of these run whatever happens.

    Relies on ``torch.nn.modules.module._global_forward…_hooks…``; checked on torch 2.13.0.
    """
    return (
        _module._global_forward_pre_hooks,
        _module._global_forward_hooks,
        _module._global_forward_hooks_always_called,
    )
