"""Private and fragile names of ``fully_shard`` and DTensors, which split parameters over processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "BeforeCollectives",
    "SplitGroup",
    "choose_sharding_roots",
    "gather_parts",
    "gathering_dimensions",
    "in_context_parallel",
    "is_distributed_tensor",
    "keep_uses",
    "leader_of",
    "output_widths",
    "run_sharding_hooks",
    "sharded_modules",
    "split_groups",
    "untried_sharding",
]

#: Packages of the hooks that gather the parameters of a module, and free them. Checked on torch 2.13.0.
_GATHERING = ("torch.distributed.fsdp", "torch.distributed._composable")

#: The oldest torch with which parameters were split over ranks.
_TRIED = (2, 11)

#: Modules of ``context_parallel``; older versions of torch have the second one.
_CONTEXT_PARALLEL = ("_context_parallel._attention", "_attention")


def untried_sharding(root: nn.Module) -> str:
    """Name the wrapper that splits parameters in a way not tried with this torch; empty if none does.

    ``fully_shard`` of torch 2.6 fails on a CPU by itself, where all of this is tested. Relies on
    ``torch.__version__``; checked on torch 2.13.0 and 2.14.1.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) >= _TRIED:
        return ""
    if not sharded_modules(root) and not split_groups(root):
        return ""
    return f"`fully_shard` and tensor parallelism of torch {torch.__version__}, which were not tried"


def sharded_modules(root: nn.Module) -> list[nn.Module]:
    """Return the modules that ``fully_shard`` was applied to, outer ones first.

    Relies on ``torch.distributed.fsdp.FSDPModule``; checked on torch 2.13.0.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if kind is None else [module for module in root.modules() if isinstance(module, kind)]


def gather_parts(whole: Tensor, part: Tensor, group: Any) -> None:
    """Gather each process's part into one tensor, in the order of processes; all of a group call this.

    Relies on ``torch.distributed.all_gather_single``, or ``all_gather_into_tensor``, its deprecated name and
    the only one before torch 2.13; checked on torch 2.13.0.
    """
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(whole, part, group)


def is_distributed_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which each process has a part or a copy.

    Relies on ``torch.distributed.tensor.DTensor``; checked on torch 2.13.0.
    """
    return _is_distributed(type(tensor))


def _is_distributed(kind: type) -> bool:
    """Whether tensors of a class are DTensors.

    Relies on ``torch.distributed.tensor.DTensor``; checked on torch 2.13.0.
    """
    distributed = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return distributed is not None and issubclass(kind, distributed)


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


@dataclass(frozen=True)
class SplitGroup:
    """Processes that have parts of the same layers.

    Args:
        group: Their process group.
        index: Which part this process has.
        ranks: Of the processes, in the order of the parts.
    """

    group: Any
    index: int
    ranks: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the group, the same on all of its processes."""
        name: str = self.group.group_name
        return name


def split_groups(root: nn.Module) -> list[SplitGroup]:
    """Return the groups of processes, this one among them, that have parts of the layers of a module.

    A forward pass computes with these parts, whatever ``fully_shard`` gathers before. Relies on the
    placements of DTensors, of which ``fully_shard`` puts its own first, and on ``DeviceMesh.get_group``;
    checked on torch 2.13.0.
    """
    if not (dist.is_available() and dist.is_initialized()):  # at each sample: the modules are not walked
        return []
    gathered = gathering_dimensions(root)
    groups: dict[str, SplitGroup] = {}
    for parameter in root.parameters():
        if not is_distributed_tensor(parameter):
            continue
        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        for dimension in range(gathered.get(id(parameter), 0), len(placements)):
            if placements[dimension].is_shard() and mesh.size(dimension) > 1:
                group = mesh.get_group(dimension)
                ranks = tuple(dist.get_process_group_ranks(group))
                own = SplitGroup(group, mesh.get_local_rank(dimension), ranks)
                groups[own.name] = own
    return list(groups.values())


def leader_of(root: nn.Module) -> int | None:
    """Return the first rank of those that have parts of the same layers; ``None`` where no layer is split.

    Relies on :func:`split_groups`; checked on torch 2.13.0.
    """
    return min((rank for group in split_groups(root) for rank in group.ranks), default=None)


def output_widths(module: nn.Module) -> list[tuple[int, int]]:
    """Return how many outputs the split linear layers in a module have, on all processes and on this one.

    Relies on DTensors' placements and ``_local_tensor``; checked on torch 2.13.0.
    """
    return [
        (p.shape[0], p._local_tensor.shape[0])  # type: ignore[attr-defined]
        for p in module.parameters()
        if p.dim() == 2 and is_distributed_tensor(p) and any(x.is_shard(0) for x in p.placements)  # type: ignore[attr-defined]
    ]


class BeforeCollectives(TorchDispatchMode):
    """Calls a function before each operator that waits for the other processes of a group.

    Relies on ``TorchDispatchMode``; checked on torch 2.13.0.

    Args:
        split: The group.
        before: The function.
    """

    def __init__(self, split: SplitGroup, before: Callable[[], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._split = split
        self._before = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(_is_distributed, types)):
            return NotImplemented  # a DTensor's own operations follow, and its collectives among them
        if _is_of_group((*args, *(kwargs or {}).values()), self._split):
            self._before()
        return func(*args, **(kwargs or {}))


def _is_of_group(arguments: tuple[Any, ...], split: SplitGroup) -> bool:
    """Whether arguments of an operator name a process group: that operator waits for its other processes.

    Relies on operators taking the group's name, or the group as a ScriptObject; checked on torch 2.13.0.
    """
    for argument in arguments:
        if isinstance(argument, str) and argument == split.name:
            return True
        if "ProcessGroup" in str(getattr(argument, "_type", lambda: "")()):
            return bool(dist.ProcessGroup.unbox(argument).group_name == split.name)
    return False
