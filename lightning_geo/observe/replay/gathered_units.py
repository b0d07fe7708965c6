"""Which parameters of a model are gathered together, and while which module runs: FSDP1 and ZeRO-3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lightning_geo.observe import looks_like_attention
from lightning_geo.utils._deepspeed import (
    external_parameters,
    gather_partitions,
    is_partitioned,
    kind_of,
)
from lightning_geo.utils._torch import (
    FlatParameters,
    flat_parameters,
    gather_parts,
    input_type,
    inside_of_unit,
    parameters_of,
    path_without_units,
    units_of,
)

__all__ = ["ParameterPlace", "Unit", "units_in"]


#: By the identity of a parameter, paths of the modules that own it, with its name there.
_Owners = dict[int, list[tuple[str, str]]]


@dataclass(frozen=True)
class ParameterPlace:
    """Where a parameter of a unit is.

    Args:
        module: Path of the module that owns it.
        name: Its name there.
        number: Which of those that the unit gathers.
    """

    module: str
    name: str
    number: int


@dataclass(frozen=True)
class Unit:
    """Parameters that are whole while one module runs.

    Args:
        path: Of that module in the model; None for all of a forward pass of the model.
        places: Where they are in the model; the same number at several places is one parameter.
        gather: Returns them, called by all ranks together.
        kinds: Of each that is gathered: type, device, and whether it is trained.
        cast: Type of the module's floating point inputs; None for that which they have.
    """

    path: str | None
    places: tuple[ParameterPlace, ...]
    gather: Callable[[], list[Tensor]]
    kinds: tuple[tuple[torch.dtype, torch.device, bool], ...]
    cast: torch.dtype | None = None


def units_in(model: nn.Module, root: nn.Module) -> list[Unit]:
    """Return the units of a model, in the order of its modules, those around it first.

    Args:
        model: The model.
        root: The module that is trained, as the loop calls it.
    """
    paths = {id(module): path_without_units(path) for path, module in model.named_modules()}
    every = units_of(root)
    flat = [unit for wrapper in every or units_of(model) if (unit := _flat_unit(wrapper, paths)) is not None]
    if flat or not any(map(is_partitioned, model.parameters())):
        return flat
    owners: _Owners = {}
    for module in model.modules():
        for name, parameter in parameters_of(module).items():
            owners.setdefault(id(parameter), []).append((paths[id(module)], name))
    return list(_partitioned_units(model, "", owners, set()))


def _flat_unit(wrapper: nn.Module, paths: dict[int, str]) -> Unit | None:
    """The unit of a wrapper of FSDP1; None if it has nothing to do with the model."""
    parameters, inside = flat_parameters(wrapper), inside_of_unit(wrapper)
    path, cast = paths.get(id(inside)), input_type(wrapper)
    if parameters is None:
        return None if path is None or cast is None else Unit(path, (), list, (), cast)
    places = [
        ParameterPlace(paths[id(module)], name, number)
        for module, name, number in parameters.places()
        if id(module) in paths
    ]
    if not places and path is None:
        return None
    kinds = [(parameters.dtype, parameters.device, trained) for trained in parameters.requires_grad()]
    return Unit(path, tuple(places), partial(_whole_unit, parameters), tuple(kinds), cast)


def _whole_unit(parameters: FlatParameters) -> list[Tensor]:
    return parameters.gather(gather_parts)


def _whole_partitions(parameters: list[Tensor]) -> list[Tensor]:
    return gather_partitions(parameters, gather_parts)


def _partitioned_units(
    module: nn.Module, path: str, owners: _Owners, visited: set[int], listed: bool = False
) -> Iterator[Unit]:
    """The units of what ZeRO-3 partitions: each layer, and each module that is in none."""
    if id(module) in visited:
        return
    whole = listed and not any(map(_lists_attention, module.modules()))
    parts = list(module.modules()) if whole else [module]
    visited.update(map(id, parts))
    unit = _partitioned_unit(path, parts, owners)
    if unit is not None:
        yield unit
    if whole:
        return
    in_list = isinstance(module, (nn.ModuleList, nn.Sequential))
    for name, child in module.named_children():
        yield from _partitioned_units(child, f"{path}.{name}".lstrip("."), owners, visited, in_list)


def _lists_attention(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and any(
        map(looks_like_attention, module.modules())
    )


def _partitioned_unit(path: str, modules: list[nn.Module], owners: _Owners) -> Unit | None:
    used = dict[int, Tensor]()
    for module in modules:
        own = [p for p in parameters_of(module).values() if p is not None]
        used |= {id(p): p for p in (*own, *external_parameters(module)) if is_partitioned(p)}
    used = {number: parameter for number, parameter in used.items() if number in owners}
    if not used:
        return None
    places = [
        ParameterPlace(module, name, number)
        for number, parameter in enumerate(used)
        for module, name in owners[parameter]
    ]
    parameters = list(used.values())
    return Unit(path, tuple(places), partial(_whole_partitions, parameters), tuple(map(kind_of, parameters)))
