"""Private and fragile names of DeepSpeed, each behind one function. Nothing here imports it.

An update of DeepSpeed that renames one of them is repaired here. ``tests/test_private_names.py`` fails for
every use of such a name elsewhere in the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "external_parameters",
    "gather_partitions",
    "inside_of_engine",
    "is_partitioned",
    "is_whole",
    "kind_of",
    "steps_by_engine",
    "untried_engine",
]

#: The engine that trains with ZeRO; engines derived from it split models in other ways.
_ENGINE = "DeepSpeedEngine"


def _is_engine(module: nn.Module) -> bool:
    """Whether a module is an engine of DeepSpeed.

    Relies on the class's name; checked on DeepSpeed 0.19.8.
    """
    return any(kind.__name__ == _ENGINE for kind in type(module).__mro__)


def inside_of_engine(module: nn.Module) -> nn.Module | None:
    """Return the model that an engine trains; None if the module is no engine.

    Relies on ``DeepSpeedEngine.module``; checked on DeepSpeed 0.19.8.
    """
    inside: nn.Module | None = module.module if _is_engine(module) else None  # type: ignore[assignment]
    return inside


def steps_by_engine(root: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer updates the parameters of an engine, of which it has copies.

    Relies on ``DeepSpeedEngine.basic_optimizer``; checked on DeepSpeed 0.19.8.
    """
    return any(getattr(m, "basic_optimizer", None) is optimizer for m in root.modules() if _is_engine(m))


def untried_engine(root: nn.Module) -> str:
    """Name the option that makes an engine compute in a way not tried; empty if none does.

    Relies on the class's name, on the methods ``autotp_size``, ``zero_quantized_weights``,
    ``zero_quantized_nontrainable_weights``, ``is_deepcompile_enabled`` and on ``seq_parallel_group`` and
    ``has_moe_layers`` of the engine, on ``ds_tensor`` and its ``status`` of parameters; checked on DeepSpeed
    0.19.8.
    """
    for engine in filter(_is_engine, root.modules()):
        if type(engine).__name__ != _ENGINE:
            return type(engine).__name__
        features = {
            "experts on some ranks": engine.has_moe_layers,
            "automatic tensor parallelism": _asked(engine, "autotp_size") > 1,
            "quantized weights": _asked(engine, "zero_quantized_weights"),
            "quantized frozen weights": _asked(engine, "zero_quantized_nontrainable_weights"),
            "DeepCompile": _asked(engine, "is_deepcompile_enabled"),
            "sequence parallelism": _size(getattr(engine, "seq_parallel_group", None)) > 1,
        }
        for feature, there in features.items():
            if there:
                return f"DeepSpeed with {feature}"
    for parameter in filter(is_partitioned, root.parameters()):
        part: Any = parameter.ds_tensor  # type: ignore[attr-defined]
        if part is None or part.device.type != parameter.device.type or hasattr(part, "ds_quant_scale"):
            return "DeepSpeed with parameters that are offloaded or quantized"
        if part.numel() * _size(parameter.ds_process_group) < parameter.ds_numel:  # type: ignore[attr-defined]
            return "DeepSpeed with a partition of parameters other than ZeRO's"
    return ""


def _asked(engine: Any, name: str) -> int:
    method = getattr(engine, name, None)
    return int(method() or 0) if callable(method) else 0


def _size(group: Any) -> int:
    return 1 if group is None else dist.get_world_size(group)


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 leaves a part of a parameter on each rank.

    Relies on ``ds_id``; checked on DeepSpeed 0.19.8.
    """
    return hasattr(parameter, "ds_id")


def is_whole(module: nn.Module) -> bool:
    """Whether the parameters of a module are whole now; to look at one that is not would gather it.

    A rank that looks alone would wait for the others. Relies on ``ds_id`` and ``ds_numel``; checked on
    DeepSpeed 0.19.8.
    """
    parts = filter(is_partitioned, module.parameters())
    return all(p.numel() == p.ds_numel for p in parts)  # type: ignore[attr-defined]


def kind_of(parameter: Tensor) -> tuple[torch.dtype, torch.device, bool]:
    """Return type and device of a partitioned parameter while it is whole, and whether it is trained.

    Relies on ``ds_tensor``; checked on DeepSpeed 0.19.8.
    """
    dtype: torch.dtype = parameter.ds_tensor.dtype  # type: ignore[attr-defined]
    return dtype, parameter.device, parameter.requires_grad


def external_parameters(module: nn.Module) -> list[Tensor]:
    """Return parameters of other modules that the forward of a module uses, as far as a forward showed.

    Relies on ``_external_params``; checked on DeepSpeed 0.19.8.
    """
    return list(getattr(module, "_external_params", {}).values())


def gather_partitions(
    parameters: Iterable[Tensor], gather_parts: Callable[[Tensor, Tensor, Any], object]
) -> list[Tensor]:
    """Return partitioned parameters as a whole, as they are now; every rank calls this together.

    The parameters stay as they are. Relies on ``ds_tensor``, of which each rank has an equal part in the
    order of ranks, the last ones padded, ``ds_process_group``, ``ds_numel`` and ``ds_shape``; checked on
    DeepSpeed 0.19.8.

    Args:
        parameters: The same ones on every rank, in the same order.
        gather_parts: Puts each rank's part into a whole tensor, given that, the part and the group.
    """
    whole = []
    for parameter in parameters:
        held: Any = parameter
        part = held.ds_tensor.detach().flatten()
        gathered = part.new_empty(part.numel() * _size(held.ds_process_group))
        gather_parts(gathered, part, held.ds_process_group)  # one by one, or each would be there twice
        whole.append(gathered[: held.ds_numel].view(held.ds_shape))
    return whole
