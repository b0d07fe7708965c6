"""The forward pass of a model whose parameters are split over processes, run by all of them together."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Container, Hashable, Iterable, Iterator
from typing import Any

from torch import nn

from lightning_geo.observe.replay.call_hooks import Fleeting
from lightning_geo.observe.replay.lockstep import Lockstep
from lightning_geo.observe.replay.undisturbed import device_of
from lightning_geo.utils._deepspeed import is_partitioned, untried_engine
from lightning_geo.utils._torch import (
    gathering_dimensions,
    keep_uses,
    run_sharding_hooks,
    sharded_modules,
    split_groups,
    units_of,
    untried_sharding,
    untried_units,
)

__all__ = ["GatheredInPlace", "Gathering", "is_split", "leaves_parts", "unreplayable"]


class Gathering(ABC):
    """Makes the same collectives in each forward pass of a model, on every rank.

    A rank on which a forward pass ends early gathers what the others still do, in the same order, so that
    none of them waits. It knows the order from an earlier pass. A rank whose device or network fails inside a
    collective cannot do so: the others then wait for the timeout of the process group, as in training.
    """

    #: ends a pass on all processes that have parts of the same layers; None where no layer is split
    lockstep: Lockstep | None = None
    #: whether it replays a copy of the model
    copies = False

    def __init__(self) -> None:
        #: forward passes that are complete, for the other ranks
        self.forwards = 0
        #: what the next passes are: those of one kind gather the same
        self.kind: Hashable = None

    @abstractmethod
    def forward(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Run one forward pass inside; whatever happens, it is complete and nothing stays gathered after it.

        Args:
            model: What runs: the model itself, or its copy.
        """

    @abstractmethod
    def make_up(self) -> None:
        """Gather what a forward pass gathers, without the pass."""


class GatheredInPlace(Gathering):
    """The same of a model that ``fully_shard`` or tensor parallelism splits, by its own hooks.

    ``fully_shard`` gathers a module's parameters before its forward, which each rank has to do at the same
    time. Before the first pass, the order is that of the modules. Where tensor parallelism splits layers,
    ranks with parts of the same layers end a pass together, see :class:`.Lockstep`.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        groups = split_groups(model)
        self.lockstep = Lockstep(groups[0], device_of(model)) if groups else None
        #: by kind, the sharded modules in the order in which they start (True) and end
        self._orders: dict[Hashable, list[tuple[nn.Module, bool]]] = {}

    @contextlib.contextmanager
    def forward(self, model: nn.Module) -> Iterator[None]:
        """Run one forward pass inside.

        Gathered parameters of a forward pass before are freed, too, so that modules hold the same parameters
        before and after.
        """
        modules = sharded_modules(self._model)
        free(modules)
        together = contextlib.nullcontext() if self.lockstep is None else self.lockstep.passing()
        forget, events = keep_uses(modules), list[tuple[nn.Module, bool]]()
        handles = [m.register_forward_pre_hook(Fleeting(_noting(events, True))) for m in modules]
        handles += [m.register_forward_hook(Fleeting(_noting(events, False))) for m in modules]
        try:
            with together:
                yield
            self._orders[self.kind] = events
        except BaseException:
            self._complete(events)
            raise
        finally:
            for handle in handles:
                handle.remove()
            free(modules)
            forget()
            self.forwards += 1

    def make_up(self) -> None:
        if self.lockstep is not None:
            self.lockstep.fail()
        modules = sharded_modules(self._model)
        free(modules)
        forget = keep_uses(modules)
        try:
            self._complete([])
        finally:
            free(modules)
            forget()
            self.forwards += 1

    def _complete(self, events: list[tuple[nn.Module, bool]]) -> None:
        order = self._orders.get(self.kind) or list(_by_place(self._model, set()))
        for module, before in order[len(events) :]:
            run_sharding_hooks(module, before=before)


def free(modules: list[nn.Module]) -> None:
    """Let modules hold their own part of the parameters alone."""
    for module in modules:
        module.reshard()  # type: ignore[operator]


def is_split(model: nn.Module) -> bool:
    """Whether processes have parts of a model that its own hooks put together in a forward pass."""
    return bool(sharded_modules(model) or split_groups(model))


def leaves_parts(root: nn.Module) -> bool:
    """Whether a rank has a part of some parameters only, outside of a forward pass.

    Args:
        root: The module that is trained, as the loop calls it.
    """
    return bool(sharded_modules(root) or units_of(root)) or any(map(is_partitioned, root.parameters()))


def unreplayable(root: nn.Module, models: Iterable[nn.Module]) -> str:
    """Return what splits parameters so that a model cannot be replayed; empty if each can.

    Args:
        root: The module that is trained, as the loop calls it.
        models: Those in it that may be observed.
    """
    named = untried_sharding(root) or untried_units(root) or untried_engine(root)
    if named:
        return named
    if is_split(root) and units_of(root):
        return "FullyShardedDataParallel together with `fully_shard` or tensor parallelism"
    gathered = gathering_dimensions(root)
    if any(_outside_of_gathering(model, gathered) for model in models):
        return "`fully_shard` of a module around it"
    return ""


def _outside_of_gathering(model: nn.Module, gathered: Container[int]) -> bool:
    """Whether a parameter of a model is a part only, and no module inside the model gathers it."""
    inside = {id(p) for module in sharded_modules(model) for p in module.parameters()}
    return any(id(p) in gathered and id(p) not in inside for p in model.parameters())


def _noting(events: list[tuple[nn.Module, bool]], before: bool) -> Any:
    def note(module: nn.Module, *_: Any) -> None:
        events.append((module, before))

    return note


def _by_place(module: nn.Module, visited: set[int]) -> Iterator[tuple[nn.Module, bool]]:
    if id(module) in visited:
        return
    visited.add(id(module))
    sharded = sharded_modules(module)[:1] == [module]
    if sharded:
        yield module, True
    for child in module.children():
        yield from _by_place(child, visited)
    if sharded:
        yield module, False
