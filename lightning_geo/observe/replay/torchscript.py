"""TorchScript modules, which run outside Python, so that their inside cannot be observed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.utils._torch import script_attribute, script_attributes, set_script_attribute

__all__ = ["is_scripted", "keep_state", "scripted_attention"]

_FUSED = "aten::scaled_dot_product_attention"
_SOFTMAX = ("aten::softmax", "aten::_softmax")
_PRODUCTS = ("aten::matmul", "aten::bmm", "aten::baddbmm", "aten::einsum")


def is_scripted(module: nn.Module) -> bool:
    """Whether ``torch.jit.script`` or ``torch.jit.trace`` made a module; such a module takes no hooks."""
    return isinstance(module, torch.jit.ScriptModule)


def scripted_attention(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of the TorchScript modules whose own code computes attention, by their graphs.

    Args:
        modules: Modules by path.
    """
    attending = [name for name, module in modules.items() if is_scripted(module) and _attends(module)]
    # A module's graph contains those of its children: only the innermost modules attend by themselves.
    return [
        name for name in attending
        if not any(other != name and other.startswith(f"{name}." if name else "") for other in attending)
    ]  # fmt: skip


def _attends(module: Any) -> bool:
    try:
        graph = module.inlined_graph
    except (AttributeError, RuntimeError):  # a module without forward has no graph
        return False

    def calls(*kinds: str) -> bool:
        return any(graph.findAllNodes(kind, True) for kind in kinds)

    return calls(_FUSED) or (calls(*_SOFTMAX) and calls(*_PRODUCTS))


def keep_state(module: Any) -> Callable[[], None]:
    """Return a function that restores a TorchScript module's attributes and its ``training`` flag.

    These are not in the module's ``__dict__``. Tensors changed in place are left to the caller.
    """
    before = {name: script_attribute(module, name) for name in script_attributes(module)}

    def restore() -> None:
        for name, value in before.items():
            now = script_attribute(module, name)
            same = now is value if isinstance(value, Tensor) or isinstance(now, Tensor) else now == value
            if not same:
                set_script_attribute(module, name, value)

    return restore
