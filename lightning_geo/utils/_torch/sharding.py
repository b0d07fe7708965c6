"""Private and fragile names of what splits a model's parameters over processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "choose_sharding_roots",
    "foreign_sharding",
    "gathering_dimensions",
    "in_context_parallel",
    "is_distributed_tensor",
    "is_distributed_tensor_type",
    "keep_uses",
    "run_sharding_hooks",
    "sharded_modules",
]

#: Packages of the hooks that gather the parameters of a module, and free them. Checked on torch 2.13.0.
_GATHERING = ("torch.distributed.fsdp", "torch.distributed._composable")

#: Classes of modules whose parameters only their own forward gathers; DeepSpeed may not be installed.
_FOREIGN = ("FullyShardedDataParallel", "DeepSpeedEngine")

#: Modules of ``context_parallel``; older versions of torch have the second one.
_CONTEXT_PARALLEL = ("_context_parallel._attention", "_attention")


def sharded_modules(root: nn.Module) -> list[nn.Module]:
    """Return the modules that ``fully_shard`` was applied to, outer ones first.

    Relies on ``torch.distributed.fsdp.FSDPModule``; checked on torch 2.13.0.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if kind is None else [module for module in root.modules() if isinstance(module, kind)]


def is_distributed_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which each process has a part or a copy.

    Relies on ``torch.distributed.tensor.DTensor``; checked on torch 2.13.0.
    """
    return is_distributed_tensor_type(type(tensor))


def is_distributed_tensor_type(kind: type) -> bool:
    """Whether tensors of a class are DTensors.

    Relies on ``torch.distributed.tensor.DTensor``; checked on torch 2.13.0.
    """
    distributed = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return distributed is not None and issubclass(kind, distributed)


def foreign_sharding(root: nn.Module) -> str:
    """Name what else splits the parameters of a module over processes; empty if nothing does.

    Relies on the names ``FullyShardedDataParallel`` and ``DeepSpeedEngine`` and on DeepSpeed's ``ds_id``;
    checked on torch 2.13.0.
    """
    for module in root.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _FOREIGN:
                return kind.__name__
    return "DeepSpeed" if any(hasattr(parameter, "ds_id") for parameter in root.parameters()) else ""


def in_context_parallel() -> bool:
    """Whether attention computes with the keys of other processes, as inside ``context_parallel``.

    Relies on ``_replaced_functions`` of the module of ``context_parallel``; checked on torch 2.13.0.
    """
    modules = (sys.modules.get(f"torch.distributed.tensor.experimental.{name}") for name in _CONTEXT_PARALLEL)
    return any(F.scaled_dot_product_attention in getattr(m, "_replaced_functions", ()) for m in modules)


def _groups(state: Any) -> list[Any]:
    """The groups of parameters that are gathered together; torch 2.6 has one for each module."""
    one = getattr(state, "_fsdp_param_group", None)
    return list(getattr(state, "_fsdp_param_groups", [] if one is None else [one]))


def gathering_dimensions(root: nn.Module) -> dict[int, int]:
    """Return how many dimensions of its mesh a parameter is gathered over, by its identity.

    Of a DTensor's placements they are the first ones. Relies on ``FSDPState._fsdp_param_groups`` and
    ``FSDPParamGroup.mesh_info``; checked on torch 2.13.0.
    """
    dimensions: dict[int, int] = {}
    for module in sharded_modules(root):
        for group in _groups(module._get_fsdp_state()):  # type: ignore[operator]
            size = group.mesh_info.mesh.ndim
            dimensions |= {id(param.sharded_param): size for param in group.fsdp_params}
    return dimensions


def choose_sharding_roots(root: nn.Module) -> None:
    """Let the outermost of the sharded modules be the roots, before a module inside of them runs alone.

    The first of them to run would be the root otherwise, and training would fail. Relies on
    ``FSDPModule._get_fsdp_state`` and ``FSDPState._lazy_init``; checked on torch 2.13.0.
    """
    inner: set[int] = set()
    for module in sharded_modules(root):
        if id(module) not in inner:
            module._get_fsdp_state()._lazy_init()  # type: ignore[operator]
            inner.update(map(id, module.modules()))


def run_sharding_hooks(module: nn.Module, *, before: bool) -> None:
    """Gather a sharded module's parameters as its forward would, or free them as after it.

    Relies on ``fully_shard`` doing so in forward hooks, and on ``Module._forward_pre_hooks``,
    ``_forward_pre_hooks_with_kwargs`` and ``_forward_hooks``;
    checked on torch 2.13.0.
    """
    hooks = module._forward_pre_hooks if before else module._forward_hooks
    for key, hook in list(hooks.items()):
        function: Any = getattr(hook, "__func__", hook)
        if getattr(function, "__module__", "").startswith(_GATHERING):
            with_kwargs = before and key in module._forward_pre_hooks_with_kwargs
            hook(module, (), *([] if before else [None]), *([{}] if with_kwargs else []))


def keep_uses(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Return a function that forgets the forward passes since this call.

    The next backward pass gathers parameters ahead, in the opposite order of all passes before it. Relies on
    ``FSDPState._fsdp_param_groups``, ``FSDPParamGroup._post_forward_indices`` and
    ``FSDPCommContext.post_forward_order``; without effect where there are none; checked on torch 2.13.0.
    """
    lists: dict[int, list[Any]] = {}
    for module in modules:
        state = module._get_fsdp_state()  # type: ignore[operator]
        own = [getattr(group, "_post_forward_indices", []) for group in _groups(state)]
        order = getattr(getattr(state, "_comm_ctx", None), "post_forward_order", [])
        lists |= {id(kept): kept for kept in (*own, order)}
    lengths = {number: len(kept) for number, kept in lists.items()}

    def forget() -> None:
        for number, kept in lists.items():
            del kept[lengths[number] :]

    return forget
