"""A copy of a model of which each process has a part, with whole parameters while a module needs them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_geo.observe.replay.gathered_units import Unit, units_in
from lightning_geo.observe.replay.gathering import GatheredInPlace, Gathering, is_split
from lightning_geo.observe.replay.lockstep import Lockstep
from lightning_geo.observe.replay.twin import twin_of
from lightning_geo.observe.replay.undisturbed_run import device_of
from lightning_geo.utils._torch import (
    inside_of_unit,
    is_flat,
    parameters_of,
    path_without_units,
    units_of,
    without_function_modes,
)

__all__ = ["Assembling", "gathering_of"]


def gathering_of(model: nn.Module, root: nn.Module) -> Gathering | None:
    """Return what gathers a model's parameters in a replay; None where each rank has them all.

    Args:
        model: The model.
        root: The module that is trained, as the loop calls it.
    """
    if is_split(model):
        return GatheredInPlace(model)
    return Assembling(model, root) if units_in(model, root) else None


class Assembling(Gathering):
    """Replays a copy of a model that FSDP1 or ZeRO-3 splits, and gathers its parameters for that copy alone.

    Both strategies gather a module's parameters into training's own tensors, and remember the order in which
    they did, for the next backward pass. A pass of theirs without a backward leaves another state behind, and
    one that fails on one rank leaves the others waiting. So the copy has neither their modules nor their
    hooks, and no parameters: those of a :class:`.Unit` are gathered when its module starts, and freed when it
    ends. Training's tensors are only read.

    Args:
        model: The model.
        root: The module that is trained, as the loop calls it.
    """

    copies = True

    def __init__(self, model: nn.Module, root: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._root = root
        self._device = device_of(model)
        #: by kind, the units in the order in which a pass gathers them
        self._orders: dict[Hashable, list[Unit]] = {}
        self._units: list[Unit] = []

    def copy(self, model: nn.Module) -> nn.Module:
        """Return a copy without parameters, for :meth:`forward`.

        Args:
            model: The model, or an earlier copy.
        """
        if model is not self._model:
            return twin_of(model)
        self._find_units()
        wrappers = units_of(model)
        modules = {path_without_units(path): module for path, module in model.named_modules()}
        empty = _placeholders(self._units)
        replaced = {}
        for (path, name), parameter in empty.items():
            for place in (parameters_of(modules[path]), vars(modules[path])):
                if isinstance(place.get(name), Tensor):
                    replaced[id(place[name])] = parameter
        twin = twin_of(model, replaced=replaced, unwrapped=[(w, inside_of_unit(w)) for w in wrappers])
        copies = dict(twin.named_modules())
        for module in copies.values():
            for name in [n for n, p in parameters_of(module).items() if p is not None and is_flat(p)]:
                del parameters_of(module)[name]
        for (path, name), parameter in empty.items():
            copies[path].__dict__.pop(name, None)
            parameters_of(copies[path])[name] = parameter
        return twin

    @contextlib.contextmanager
    def forward(self, model: nn.Module) -> Iterator[None]:
        """Run one forward pass of a copy inside.

        Raises:
            OtherRankError: If another process failed in it.
        """
        order = self._orders.get(self.kind)
        first = Lockstep(self._device) if order is None else None
        passing = _Pass(model, first)
        try:
            with passing, contextlib.nullcontext() if first is None else first.passing():
                for place, unit in enumerate(self._units, 1):
                    passing.expect(unit, place)
                yield
            self._orders.setdefault(self.kind, passing.gathered)
        except BaseException:
            for unit in (order or [])[len(passing.gathered) :]:
                unit.gather()
            raise
        finally:
            self.forwards += 1

    def make_up(self) -> None:
        try:
            self._find_units()
            order = self._orders.get(self.kind)
            if order is None:
                Lockstep(self._device).fail()
            for unit in order or []:
                unit.gather()
        finally:
            self.forwards += 1

    def _find_units(self) -> None:
        """Find the units as they are: forward passes show DeepSpeed which modules use others' parameters."""
        before, self._units = self._units, units_in(self._model, self._root)
        if [unit.places for unit in before] != [unit.places for unit in self._units]:
            self._orders.clear()


class _Pass:
    """One forward pass of a copy: its hooks, and which parameters are whole.

    Args:
        model: The copy.
        lockstep: With which ranks agree before each unit; None where its order is known.
    """

    def __init__(self, model: nn.Module, lockstep: Lockstep | None) -> None:
        self._modules = dict(model.named_modules())
        self._lockstep = lockstep
        #: units, in the order in which they were gathered
        self.gathered: list[Unit] = []
        self._uses: Counter[nn.Parameter] = Counter()
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> _Pass:
        return self

    def expect(self, unit: Unit, place: int) -> None:
        """Gather a unit when its module starts, or now if it is needed throughout.

        Args:
            unit: The unit.
            place: Its number, the same on all ranks.
        """
        if unit.path is None:
            self._gather(unit, place)
            return
        module = self._modules[unit.path]

        def start(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            with without_function_modes():  # an open tap would see what happens here as the model's
                self._gather(unit, place)
            if unit.cast is None:
                return None
            return apply_to_collection((args, kwargs), Tensor, _as_type, unit.cast)

        def end(*_: Any) -> None:
            with without_function_modes():
                self._free(unit)

        before = module.register_forward_pre_hook(start, with_kwargs=True, prepend=True)
        self._hooks.callback(before.remove)
        self._hooks.callback(module.register_forward_hook(end, always_call=True).remove)

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        for parameter in self._uses:
            _empty(parameter)

    def _parameters(self, unit: Unit) -> dict[int, nn.Parameter]:
        parameters = {
            place.number: parameters_of(self._modules[place.module])[place.name] for place in unit.places
        }
        return {number: parameter for number, parameter in parameters.items() if parameter is not None}

    def _gather(self, unit: Unit, place: int) -> None:
        if not unit.kinds:
            return
        if self._lockstep is not None:
            self._lockstep.agree(place)
        whole = unit.gather()
        self.gathered.append(unit)
        for number, parameter in self._parameters(unit).items():
            self._uses[parameter] += 1
            parameter.data = whole[number]

    def _free(self, unit: Unit) -> None:
        for parameter in self._parameters(unit).values():
            self._uses[parameter] -= 1
            if self._uses[parameter] <= 0:
                _empty(parameter)


def _placeholders(units: list[Unit]) -> dict[tuple[str, str], nn.Parameter]:
    """Empty parameters by path of their module and name."""
    every: dict[tuple[str, str], nn.Parameter] = {}
    for unit in units:
        numbered: dict[int, nn.Parameter] = {}
        for place in unit.places:
            known = every.get((place.module, place.name)) or numbered.get(place.number)
            if known is None:
                dtype, device, trained = unit.kinds[place.number]
                known = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=trained)
            numbered[place.number] = every[place.module, place.name] = known
    return every


def _empty(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data.new_empty(0)


def _as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
