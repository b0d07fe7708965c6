"""Private and fragile names of tensor parallelism, where processes compute with parts of one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_geo.utils._torch.sharding import (
    gathering_dimensions,
    is_distributed_tensor,
    is_distributed_tensor_type,
)

__all__ = ["BeforeCollectives", "SplitGroup", "leader_of", "output_widths", "split_groups"]


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
        """Of the group, the same on all of its processes."""
        name: str = self.group.group_name
        return name


def split_groups(root: nn.Module) -> list[SplitGroup]:
    """Return the groups of processes, this one among them, that have parts of the layers of a module.

    A forward pass computes with these parts, whatever ``fully_shard`` gathers before. Relies on the
    placements of DTensors, of which ``fully_shard`` puts its own first, and on ``DeviceMesh.get_group``;
    checked on torch 2.13.0.
    """
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
        if any(map(is_distributed_tensor_type, types)):
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
