"""Private names of FSDP1, whose units keep the parameters of their modules in one flat tensor each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "FlatParameters",
    "flat_parameters",
    "input_type",
    "inside_of_unit",
    "is_flat",
    "is_unit",
    "path_without_units",
    "units_of",
    "untried_units",
]

#: The oldest torch with which a replay of FSDP1 was tried.
_TRIED = (2, 11)


def units_of(root: nn.Module) -> list[nn.Module]:
    """Return the modules that FSDP1 wrapped around others, outer ones first.

    Relies on :func:`is_unit`; checked on torch 2.13.0.
    """
    return [module for module in root.modules() if is_unit(module)]


def is_unit(module: nn.Module) -> bool:
    """Whether FSDP1 wrapped a module in this one.

    Relies on ``torch.distributed.fsdp.FullyShardedDataParallel``; checked on torch 2.13.0.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    return kind is not None and isinstance(module, kind)


def inside_of_unit(unit: nn.Module) -> nn.Module:
    """Return the module that a unit wraps.

    Relies on ``FullyShardedDataParallel._fsdp_wrapped_module``; checked on torch 2.13.0.
    """
    inside: nn.Module = unit._fsdp_wrapped_module  # type: ignore[assignment]
    return inside


def path_without_units(path: str) -> str:
    """Return the path that a module has where no unit is around a module of it.

    Relies on ``FullyShardedDataParallel._fsdp_wrapped_module``; checked on torch 2.13.0.
    """
    return ".".join(part for part in path.split(".") if part != "_fsdp_wrapped_module")


def untried_units(root: nn.Module) -> str:
    """Name the option that makes units compute in a way not tried; empty if none does.

    Relies on ``FlatParamHandle._offload_params``, ``FlatParameter._param_extensions`` and
    ``torch.__version__``; checked on torch 2.13.0.
    """
    units = units_of(root)
    if units and tuple(map(int, torch.__version__.split(".")[:2])) < _TRIED:
        return f"FullyShardedDataParallel of torch {torch.__version__}, which was not tried"
    handles = [handle for unit in units if (handle := _handle(unit)) is not None]
    if any(handle._offload_params for handle in handles):
        return "FullyShardedDataParallel with parameters that are offloaded to the CPU"
    if any(x is not None for handle in handles for x in handle.flat_param._param_extensions):
        return "FullyShardedDataParallel with tensor parallelism in it"
    return ""


def _handle(unit: nn.Module) -> Any:
    """Return the handle of a unit's flat tensor; None without parameters of its own.

    Relies on ``FullyShardedDataParallel._handle``; checked on torch 2.13.0.
    """
    return unit._handle


def is_flat(parameter: Tensor) -> bool:
    """Whether a parameter is the flat tensor of a unit.

    Relies on ``FlatParameter._is_flat_param``; checked on torch 2.13.0.
    """
    return hasattr(parameter, "_is_flat_param")


class FlatParameters:
    """The parameters that one unit gathers together.

    Args:
        unit: The unit.
    """

    def __init__(self, unit: nn.Module) -> None:
        self._unit: Any = unit
        self._handle = _handle(unit)

    @property
    def dtype(self) -> torch.dtype:
        """Type that they are computed with.

        Relies on ``FlatParamHandle._fwd_bwd_param_dtype``; checked on torch 2.13.0.
        """
        dtype: torch.dtype = self._handle._fwd_bwd_param_dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Device on which they are computed with.

        Relies on ``FullyShardedDataParallel.compute_device``; checked on torch 2.13.0.
        """
        device: torch.device = self._unit.compute_device
        return device

    def places(self) -> Iterator[tuple[nn.Module, str, int]]:
        """Yield the modules that own them, with their name there and their number among the unit's.

        Relies on ``FlatParameter._param_infos`` and ``_shared_param_infos``; checked on torch 2.13.0.
        """
        flat = self._handle.flat_param
        numbers = {}
        for number, (name, module, _) in enumerate(flat._param_infos):
            numbers[id(module), name] = number
            yield module, name, number
        for name, module, _, first_name, first_module, _ in flat._shared_param_infos:
            yield module, name, numbers[id(first_module), first_name]

    def requires_grad(self) -> list[bool]:
        """Whether each of them is trained.

        Relies on ``FlatParameter._params``, which is None with ``use_orig_params=False``; checked on torch
        2.13.0.
        """
        flat = self._handle.flat_param
        trained = flat._params or [flat] * len(flat._param_infos)
        return [bool(parameter.requires_grad) for parameter in trained]

    def gather(self, gather_parts: Callable[[Tensor, Tensor, Any], object]) -> list[Tensor]:
        """Return all of them as they are now; every rank of the unit's group calls this together.

        The unit's own tensors stay as they are. Relies on ``FlatParameter._local_shard``, which there is from
        the first forward on, ``_unpadded_unsharded_size``, ``FlatParamHandle._get_unflat_views``,
        ``process_group`` and ``uses_sharded_strategy``; checked on torch 2.13.0.

        Args:
            gather_parts: Puts each rank's part into a whole tensor, given that, the part and the group.
        """
        handle, flat = self._handle, self._handle.flat_param
        shard = getattr(flat, "_local_shard", flat.data).detach().to(self.dtype)
        if handle.uses_sharded_strategy:
            full = shard.new_empty(shard.numel() * dist.get_world_size(handle.process_group))
            gather_parts(full, shard, handle.process_group)
        else:
            full = shard
        views = handle._get_unflat_views(full[: flat._unpadded_unsharded_size.numel()])
        return [view.detach() for view in views]


def flat_parameters(unit: nn.Module) -> FlatParameters | None:
    """Return the parameters of a unit; None without any of its own.

    Relies on ``FullyShardedDataParallel._handle``; checked on torch 2.13.0.

    Args:
        unit: Of :func:`units_of`.
    """
    return None if _handle(unit) is None else FlatParameters(unit)


def input_type(unit: nn.Module) -> torch.dtype | None:
    """Return the type that a unit casts floating point inputs to; None where it leaves them as they are.

    Relies on ``FullyShardedDataParallel.mixed_precision`` and ``_is_root``; checked on torch 2.13.0.
    """
    precision: Any = unit.mixed_precision
    is_root: Any = unit._is_root  # None before the first forward
    casts = (precision.cast_forward_inputs and _handle(unit) is not None) or (
        precision.cast_root_forward_inputs and is_root in (True, None)
    )
    dtype: torch.dtype | None = precision.param_dtype
    return dtype if casts else None
