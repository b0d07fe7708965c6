"""The forward pass of a model whose parameters are split over processes, run by all of them together."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Container, Hashable, Iterable, Iterator
from typing import Any

from torch import nn

from lightning_geo.observe.replay.call_hooks import Fleeting
from lightning_geo.observe.replay.lockstep import Lockstep
from lightning_geo.observe.replay.undisturbed_run import device_of
from lightning_geo.utils._deepspeed import is_partitioned, untried_engine
from lightning_geo.utils._torch import (
    BeforeCollectives,
    gathering_dimensions,
    keep_uses,
    run_sharding_hooks,
    sharded_modules,
    split_groups,
    units_of,
    untried_sharding,
    untried_units,
    without_function_modes,
)

__all__ = ["GatheredInPlace", "Gathering", "is_split", "leaves_parts", "unreplayable"]

#: A sharded module in a forward pass, and whether it starts (True) or ends.
_Event = tuple[nn.Module, bool]


class Gathering(ABC):
    """Makes the same collectives in each forward pass of a model, on every rank.

    A rank on which a forward pass ends early gathers what the others still do, in the same order, so that
    none of them waits. It knows the order from an earlier pass. In the first one of a kind the ranks agree
    before each collective that all of them are there, see :class:`.Lockstep`. A rank whose device or network
    fails inside a collective can do neither: the others then wait for the timeout of the process group, as in
    training.
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
    time. Where tensor parallelism splits layers, ranks with parts of the same layers make each pass in
    lockstep: their layers add up or gather what the ranks computed.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._device = device_of(model)
        self._split = next(iter(split_groups(model)), None)
        self.lockstep = Lockstep(self._device, self._split.group) if self._split else None
        #: by kind, what a pass gathers and frees, in order
        self._orders: dict[Hashable, list[_Event]] = {}

    @contextlib.contextmanager
    def forward(self, model: nn.Module) -> Iterator[None]:
        """Run one forward pass inside.

        Gathered parameters of a forward pass before are freed, too, so that modules hold the same parameters
        before and after.
        """
        with self._sharded() as modules, contextlib.ExitStack() as hooks:
            order, events = self._orders.get(self.kind), list[_Event]()
            first = Lockstep(self._device) if modules and order is None else None
            for place, module in enumerate(modules, 1):
                if first is not None:
                    agree = Fleeting(_agreeing(first, place))
                    hooks.callback(module.register_forward_pre_hook(agree, prepend=True).remove)
                hooks.callback(module.register_forward_pre_hook(Fleeting(_noting(events, True))).remove)
                hooks.callback(module.register_forward_hook(Fleeting(_noting(events, False))).remove)
            try:
                with self._together(self.lockstep if first is None else first):
                    yield
                self._orders[self.kind] = events
            except BaseException:
                _complete(order, events)
                raise

    @contextlib.contextmanager
    def _together(self, lockstep: Lockstep | None) -> Iterator[None]:
        """Make a pass inside, with what its layers compute together."""
        if lockstep is None:
            yield
            return
        split = self._split
        layers = contextlib.nullcontext() if split is None else BeforeCollectives(split, lockstep.agree)
        with lockstep.passing(), layers:
            yield

    def make_up(self) -> None:
        with self._sharded() as modules:
            order = self._orders.get(self.kind)
            together = Lockstep(self._device) if modules and order is None else self.lockstep
            if together is not None:
                together.fail()
            _complete(order, [])

    @contextlib.contextmanager
    def _sharded(self) -> Iterator[list[nn.Module]]:
        """Yield the modules whose parameters a pass gathers, of which nothing stays gathered."""
        modules = sharded_modules(self._model)
        _free(modules)
        forget = keep_uses(modules)
        try:
            yield modules
        finally:
            _free(modules)
            forget()
            self.forwards += 1


def _complete(order: list[_Event] | None, events: list[_Event]) -> None:
    """Gather what the others still do, or end what has started where they do nothing more."""
    if order is None:
        started = list[nn.Module]()
        for module, before in events:
            if before:
                started.append(module)
            else:
                started.remove(module)
        order = [*events, *((module, False) for module in reversed(started))]
    for module, before in order[len(events) :]:
        run_sharding_hooks(module, before=before)


def _free(modules: list[nn.Module]) -> None:
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


def _noting(events: list[_Event], before: bool) -> Any:
    def note(module: nn.Module, *_: Any) -> None:
        events.append((module, before))

    return note


def _agreeing(lockstep: Lockstep, place: int) -> Any:
    def agree(*_: Any) -> None:
        with without_function_modes():  # an open tap would see what happens here as the model's
            lockstep.agree(place)

    return agree
