"""Replay a model so that training keeps no trace of it: on a twin, or in place where it cannot be copied."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset

from lightning_geo.observe import name_of
from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.observe.replay.twin import (
    foreign_among,
    foreign_hooks,
    is_lightning,
    needed_hooks,
    quiet,
    twin_of,
)
from lightning_geo.observe.replay.undisturbed import device_of, undisturbed
from lightning_geo.utils._lightning import TRAINER
from lightning_geo.utils._torch import filter_forward_hooks, global_forward_hooks, version_of
from lightning_geo.utils.errors import GeometryError
from lightning_geo.utils.formatting import some
from lightning_geo.utils.warn_once import Complaints

__all__ = ["Replica"]

#: What a module consists of, apart from its attributes.
_TREE = (*vars(nn.Module()), TRAINER)


class _SharesError(GeometryError, RuntimeError):
    """The copy of a model runs modules of the model itself."""


class Replica:
    """Runs one model beside its training.

    The first call that it is tried on runs on a copy that shares nothing, and shows which parameters the
    forward writes: later copies share all but these.

    Args:
        model: The model.
        name: Its name.
        complaints: Where it is said what a replay leaves out, or cannot keep apart.
    """

    def __init__(self, model: nn.Module, name: str, complaints: Complaints) -> None:
        self._model = model
        self._name = name_of(name, model)
        self._complaints = complaints
        #: whether a copy stands for the model
        self._copies = True
        #: names of parameters that its forward writes; None until a trial has shown them
        self._written: set[str] | None = None
        #: whether one call leaves nothing in a copy that the next could notice
        self.reusable = False
        self._entered: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """What is to be run: the model as it was when it was last remembered, or as it is now."""
        return self._model if self._entered is None else self._entered

    def remember(self) -> None:
        """Keep buffers and attributes as they are now, for runs after the training forward has moved them."""
        with contextlib.suppress(Exception):  # what cannot be copied runs as it will be then
            self._entered = twin_of(self._model) if self._copies else None

    def forget(self) -> None:
        """Run the model as it is from now on."""
        self._entered = None

    def try_out(
        self, run: Callable[[nn.Module], object], context: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """Learn from a first run what the forward writes, and whether a copy can stand for the model.

        Raises:
            Exception: What the model itself raises.
        """
        if self._written is not None:
            return
        self._say_hooks()
        try:
            twin = twin_of(self.model, None if _has_room(self._model) else ())
            before, memory = _places(twin), _memory(twin)
            reads = _DataReads(twin)
            with undisturbed(twin), _without_global_hooks(), context(), _apart(self._model), reads:
                run(twin)
            self._written = _changed(twin, before) | _other_values(twin, self.model) | reads.names
            self.reusable = not self._written and memory is not None and memory == _memory(twin)
        except Exception as error:
            with self._in_place(None), context():
                run(self._model)  # raises where the model is at fault
            self._copies = False
            self._entered = None
            self._complaints.say(
                f"{self._name} cannot be copied for a replay",
                f"{type(error).__name__}: {error}. It is replayed in place: buffers, attributes and "
                "parameters are put back, what its forward changes inside of other objects is not",
            )

    @contextlib.contextmanager
    def running(self) -> Iterator[nn.Module]:
        """Yield what stands for the model, for as long as the context lasts: each call is made in `once`."""
        if not self._copies:
            yield self._model
            return
        twin = twin_of(self.model, self._written or ())
        before = _places(twin)
        try:
            yield twin
        finally:
            written = _changed(twin, before) - (self._written or set())
            if written:
                self._written = written | (self._written or set())
                self._complaints.say(
                    f"the forward of {self._name} writes parameters",
                    f"{some(sorted(written))}, which its first replay did not: this one has changed them",
                )

    @contextlib.contextmanager
    def once(self, model: nn.Module, *, frozen: bool = False, **options: Any) -> Iterator[None]:
        """Inside, the stand-in is run.

        Args:
            model: As :meth:`running` yields it.
            frozen: Whether a copy's parameters need no gradient, so that with ``gradient`` no graph is kept.
            **options: See :func:`~lightning_geo.observe.replay.undisturbed.undisturbed`.
        """
        if model is self._model:
            with self._in_place(self._written, **options):
                yield
            return
        if frozen:
            shared = set(map(id, self._model.parameters()))  # quantised ones, see `twin_of`
            for parameter in model.parameters():
                if id(parameter) not in shared:
                    parameter.requires_grad_(False)
        with undisturbed(model, **options), _without_global_hooks():
            yield

    @contextlib.contextmanager
    def _in_place(self, written: Collection[str] | None, **options: Any) -> Iterator[None]:
        """Run the model itself, and put back what is known to change."""
        model = self._model
        guarded = [
            (name, p, p.data, p.data.clone())
            for name, p in model.named_parameters()
            if written is None or name in written
        ]
        versions = {name: version_of(parameter) for name, parameter, *_ in guarded}
        reads = _DataReads(model)
        changed: set[str] = set()
        try:
            with undisturbed(model, **options), _without_global_hooks(), contextlib.ExitStack() as trial:
                if written is None:
                    trial.enter_context(reads)
                for module in model.modules():  # `undisturbed` puts these back too
                    if not is_scripted(module):
                        filter_forward_hooks(module, _kept_hooks)
                    if is_lightning(module):
                        quiet(module)
                yield
            self._written = changed if written is None else set(written)
        finally:
            changed |= reads.names
            for name, parameter, data, copy in guarded:
                if version_of(parameter) != versions[name]:
                    changed.add(name)
                if parameter.data.data_ptr() != data.data_ptr() or not _equal(data, copy):
                    changed.add(name)
                    parameter.data = data
                    data.copy_(copy)

    def _say_hooks(self) -> None:
        hooks = foreign_hooks(self._model)
        if hooks:
            named = [f"{name_of(path, self._model)} ({hook})" for path, hook in hooks.items()]
            self._complaints.say(
                "forward hooks were left out of replays",
                f"{some(named)}. What they gather stays training's own; if they change what the model "
                'computes, `source="batch"` measures it with them',
            )


def _kept_hooks(hooks: dict[int, Any]) -> dict[int, Any]:
    """Those that a model computes with, and one's own; in order."""
    foreign = foreign_among(hooks)
    return {key: hook for key, hook in hooks.items() if key not in foreign}


def _memory(twin: nn.Module) -> bytes | None:
    """What a copy keeps beside tensors and plain values, which are put back; None if none can tell."""
    plain = (type(None), bool, int, float, complex, str, bytes, Tensor, nn.Module, Dataset, DataLoader)
    kept = [
        {k: v for k, v in vars(m).items() if k not in _TREE and not isinstance(v, plain)}
        for m in twin.modules()
        if not is_scripted(m)
    ]
    try:
        return pickle.dumps(kept)
    except Exception:
        return None


def _places(twin: nn.Module) -> dict[str, tuple[nn.Parameter, int, int]]:
    """Parameters by name, with version and address."""
    return {name: (p, version_of(p), p.data_ptr()) for name, p in twin.named_parameters()}


def _changed(twin: nn.Module, before: dict[str, tuple[nn.Parameter, int, int]]) -> set[str]:
    """Names of parameters that were written."""
    now = dict(twin.named_parameters())
    return {
        name for name, (p, version, place) in before.items()
        if now.get(name) is not p or version_of(p) != version or p.data_ptr() != place
    }  # fmt: skip


class _DataReads(TorchFunctionMode):
    """Notes which parameters are read through ``.data``.

    A write through it leaves the version as it is, and the value too where it comes out the same this time,
    as that of a clamp or a normalisation.

    Args:
        model: Whose parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in model.named_parameters()}
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__get__ and id(args[0]) in self._names:  # type: ignore[attr-defined]
            self.names.add(self._names[id(args[0])])
        return func(*args, **(kwargs or {}))


def _other_values(twin: nn.Module, model: nn.Module) -> set[str]:
    """Names of parameters whose values differ: writes through ``.data`` leave the version as it is."""
    originals = dict(model.named_parameters())
    return {n for n, p in twin.named_parameters() if n in originals and not _equal(p.data, originals[n].data)}


def _equal(x: Tensor, y: Tensor) -> bool:
    if x.device.type == "meta" or y.device.type == "meta":
        return x.device == y.device
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())


def _has_room(model: nn.Module) -> bool:
    """Whether the device has memory for all parameters once more."""
    device = device_of(model)
    if device.type != "cuda":
        return True
    needed = sum(p.numel() * p.element_size() for p in model.parameters() if p.device == device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return needed < (torch.cuda.mem_get_info(device)[0] + reserved) // 2


@contextlib.contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Raise if any of the model's own modules is called.

    Raises:
        _SharesError: At the end.
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
        raise _SharesError(f"a copy of it calls its own {type(called[0]).__name__}")


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
