"""Replay a model without a trace in training: on a twin, or in place if the model cannot be copied."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_geo.observe import name_of
from lightning_geo.observe.replay.assembling import Assembling, gathering_of
from lightning_geo.observe.replay.contents import TREE
from lightning_geo.observe.replay.data_writes import (
    DataReads,
    changed_since,
    differing_parameters,
    equal_values,
    places_of,
)
from lightning_geo.observe.replay.entered_state import Entered
from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.observe.replay.twin import (
    foreign_among,
    foreign_hooks,
    needed_hooks,
    quiet,
    twin_of,
)
from lightning_geo.observe.replay.undisturbed_run import device_of, undisturbed
from lightning_geo.utils._lightning import is_lightning
from lightning_geo.utils._torch import (
    filter_forward_hooks,
    global_forward_hooks,
    version_of,
)
from lightning_geo.utils.errors import GeometryError
from lightning_geo.utils.formatting import some
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Replica"]


class _SharesError(GeometryError, RuntimeError):
    """A model's copy calls modules of the model itself."""


class Replica:
    """Runs one model beside its training.

    The first run is a trial on a copy that shares nothing. It shows which parameters the forward pass writes:
    later copies share all others.

    A model that ``fully_shard`` or tensor parallelism split over ranks is replayed in place, because its own
    hooks gather its parameters, or what was computed with them; see :class:`.GatheredInPlace`. Of what FSDP1
    or ZeRO-3 split, a copy is replayed for which the parameters are gathered; see :class:`.Assembling`.

    Args:
        model: The model.
        name: The model's name.
        warn_once: Takes warnings about what a replay leaves out or cannot isolate.
        trained: The module that is trained, as the loop calls it; None if that is the model.
    """

    def __init__(
        self, model: nn.Module, name: str, warn_once: WarnOnce, trained: nn.Module | None = None
    ) -> None:
        self._model = model
        self._name = name_of(name, model)
        self._warn_once = warn_once
        #: gathers parameters that are split over ranks; None where each rank has them all
        self.gathering = gathering_of(model, model if trained is None else trained)
        #: whether replays run on a copy of the model
        self._copies = self.gathering is None or self.gathering.copies
        #: names of parameters that its forward pass writes; None before the trial
        self._written: set[str] | None = None
        #: whether a copy is unchanged after a call, so that further calls may use it
        self.reusable = False
        self._entered: nn.Module | None = None
        #: the same for replays in place
        self._state: Entered | None = None

    @property
    def model(self) -> nn.Module:
        """The model to run: as it was when last remembered, or as it is now."""
        return self._model if self._entered is None else self._entered

    def remember(self) -> None:
        """Keep the current buffers and attributes, for runs after the training forward pass changed them."""
        self.forget()
        with contextlib.suppress(Exception):  # if the copy fails, the model is replayed in place
            self._entered = self._copy(self._model, ()) if self._copies else None
        if self.gathering is None or not self.gathering.copies:
            with contextlib.suppress(Exception):  # if this fails too, its buffers are those of the replay
                self._state = Entered(self._model)

    def forget(self) -> None:
        """Run the model in its current state from now on."""
        self._entered = self._state = None

    def try_out(
        self, run: Callable[[nn.Module], object], context: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """Run a trial to find which parameters the forward pass writes, and whether a copy works.

        Raises:
            Exception: If the model itself fails.
        """
        if self._written is not None:
            return
        self._warn_of_hooks()
        if self.gathering is not None:  # a forward that writes parameters would write gathered copies
            self._written = set()
            return
        try:
            twin = twin_of(self.model, None if _has_room(self._model) else ())
            before, memory = places_of(twin), _memory(twin)
            reads = DataReads(twin)
            with undisturbed(twin), _without_global_hooks(), context(), _apart(self._model), reads:
                run(twin)
            self._written = changed_since(twin, before) | differing_parameters(twin, self.model) | reads.names
            self.reusable = not self._written and memory is not None and memory == _memory(twin)
        except Exception as error:
            with self._in_place(None), context():
                run(self._model)  # if the model itself fails, its error counts, not the copy's
            self._copies = False
            self._entered = None
            self._warn_once.warn(
                f"{self._name} cannot be copied for a replay",
                f"{type(error).__name__}: {error}. The model is replayed in place, and all that its forward "
                "pass changes is restored but the state of iterators, files and extensions in C",
            )

    @contextlib.contextmanager
    def running(self) -> Iterator[nn.Module]:
        """Yield the module to run, valid while the context is open; make each call inside :meth:`once`."""
        if not self._copies:
            yield self._model
            return
        if self.gathering is not None:
            yield self._copy(self.model, ())
            return
        twin = self._copy(self.model, self._written or ())
        before = places_of(twin)
        try:
            yield twin
        finally:
            written = changed_since(twin, before) - (self._written or set())
            if written:
                self._written = written | (self._written or set())
                self._warn_once.warn(
                    f"the forward of {self._name} writes parameters",
                    f"{some(sorted(written))}, but did not in its first replay: this replay has changed them",
                )

    def _copy(self, model: nn.Module, own: Collection[str]) -> nn.Module:
        return self.gathering.copy(model) if isinstance(self.gathering, Assembling) else twin_of(model, own)

    @contextlib.contextmanager
    def once(self, model: nn.Module, *, frozen: bool = False, **options: Any) -> Iterator[None]:
        """Isolate one call of the module from :meth:`running` while the context is open.

        Args:
            model: The module that :meth:`running` yields.
            frozen: Whether to turn off the gradients of a copy's parameters, so that no graph leads to them.
            **options: See :func:`~lightning_geo.observe.replay.undisturbed_run.undisturbed`.
        """
        if model is self._model:
            with self._in_place(self._written, **options):
                yield
            return
        if frozen:
            # A copy shares quantised parameters with the model (see `twin_of`): leave their flags alone.
            shared = set(map(id, self._model.parameters()))
            for parameter in model.parameters():
                if id(parameter) not in shared:
                    parameter.requires_grad_(False)
        gathered = contextlib.nullcontext() if self.gathering is None else self.gathering.forward(model)
        with undisturbed(model, **options), _without_global_hooks(), gathered:
            yield

    @contextlib.contextmanager
    def _in_place(self, written: Collection[str] | None, **options: Any) -> Iterator[None]:
        """Run the model itself, and restore everything that is known to change."""
        model = self._model
        guarded = [
            (name, p, p.data, p.data.clone())
            for name, p in model.named_parameters()
            if written is None or name in written
        ]
        versions = {name: version_of(parameter) for name, parameter, *_ in guarded}
        reads = DataReads(model)
        changed: set[str] = set()
        try:
            with undisturbed(model, **options), _without_global_hooks(), contextlib.ExitStack() as trial:
                if self._state is not None:
                    self._state.put_back()
                if written is None:
                    trial.enter_context(reads)
                for module in model.modules():  # `undisturbed` restores hooks and trainers at the end
                    if not is_scripted(module):
                        filter_forward_hooks(module, _kept_hooks)
                    if is_lightning(module):
                        quiet(module)
                if self.gathering is not None:
                    trial.enter_context(self.gathering.forward(model))
                yield
            self._written = changed if written is None else set(written)
        finally:
            changed |= reads.names
            for name, parameter, data, copy in guarded:
                if version_of(parameter) != versions[name]:
                    changed.add(name)
                if parameter.data.data_ptr() != data.data_ptr() or not equal_values(data, copy):
                    changed.add(name)
                    parameter.data = data
                    data.copy_(copy)

    def _warn_of_hooks(self) -> None:
        hooks = foreign_hooks(self._model)
        if hooks:
            named = [f"{name_of(path, self._model)} ({hook})" for path, hook in hooks.items()]
            self._warn_once.warn(
                "forward hooks were left out of replays",
                f"{some(named)}. Data that they collect thus comes from training only. If they change the "
                'model\'s results, set `source="batch"`, which measures the model with its hooks',
            )


def _kept_hooks(hooks: dict[int, Any]) -> dict[int, Any]:
    """Return the hooks that a model computes with, and the monitor's own, in order."""
    foreign = foreign_among(hooks)
    return {key: hook for key, hook in hooks.items() if key not in foreign}


def _memory(twin: nn.Module) -> bytes | None:
    """Serialise a copy's attributes other than tensors and plain values; None if they cannot be pickled."""
    plain = (type(None), bool, int, float, complex, str, bytes, Tensor, nn.Module, Dataset, DataLoader)
    kept = [
        {k: v for k, v in vars(m).items() if k not in TREE and not isinstance(v, plain)}
        for m in twin.modules()
        if not is_scripted(m)
    ]
    try:
        return pickle.dumps(kept)
    except Exception:
        return None


def _has_room(model: nn.Module) -> bool:
    """Whether the device has memory for a copy of all parameters."""
    device = device_of(model)
    if device.type != "cuda":
        return True
    needed = sum(p.numel() * p.element_size() for p in model.parameters() if p.device == device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return needed < (torch.cuda.mem_get_info(device)[0] + reserved) // 2


@contextlib.contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Check that none of the model's own modules is called.

    Raises:
        _SharesError: At the end, if one was.
    """
    called: list[nn.Module] = []
    modules = [m for m in model.modules() if not is_scripted(m)]
    handles = [m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if called:
        raise _SharesError(f"a copy of it calls the original's {type(called[0]).__name__}")


@contextlib.contextmanager
def _without_global_hooks() -> Iterator[None]:
    """Leave out hooks of the user's that hold for all modules."""
    places = global_forward_hooks()
    before = [dict(place) for place in places]
    try:
        for place in places[:2]:
            for key in place.keys() - needed_hooks(place).keys():
                del place[key]
        yield
    finally:
        for place, hooks in zip(places, before, strict=True):
            place.clear()
            place.update(hooks)
