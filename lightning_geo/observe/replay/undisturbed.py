"""Run a model once more without training noticing: no gradient, no draw, no flag and no buffer changes."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_geo.observe.replay.call_state import independent
from lightning_geo.observe.replay.torch_compile import eagerly
from lightning_geo.observe.replay.torchscript import is_scripted, keep_state
from lightning_geo.utils._torch import buffers_of, parameters_of, version_of, without_backward_hooks
from lightning_geo.utils._transformers import offloading_hooks

#: They change their way of computing when a torch function mode is on; the numbers are not quite the same.
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)

__all__ = ["Call", "undisturbed"]


@dataclass
class Call:
    """Arguments of one call of a model.

    Args:
        args: Positional ones.
        kwargs: Those by keyword.
        method: What is called instead of the observed model itself: a step of the LightningModule that it is
            in, by name, or its ``forward``.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    method: str = ""

    @classmethod
    def from_batch(cls, batch: Any) -> Call:
        """A mapping is keyword arguments, a tuple or list positional ones, anything else the one argument."""
        if isinstance(batch, Mapping):
            return cls((), dict(batch))
        return cls(tuple(batch)) if isinstance(batch, (tuple, list)) else cls((batch,))

    def map(self, function: Any) -> Call:
        """Apply ``function`` to every tensor."""
        args, kwargs = apply_to_collection([list(self.args), dict(self.kwargs)], Tensor, function)
        return Call(tuple(args), kwargs, self.method)

    def to(self, device: torch.device) -> Call:
        """Move every tensor."""
        return self.map(lambda x: x.to(device))

    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        found: list[Tensor] = []
        self.map(found.append)
        return found

    def independent(self) -> Call:
        """The same call, whose caches and containers are its own."""
        return Call(*independent(self.args, self.kwargs), self.method)

    def run(self, model: nn.Module) -> Any:
        """Call ``model``, as often as wanted: what it changes in its arguments is a copy."""
        call = self.independent()
        function = model if call.method in ("", "forward") else getattr(model, call.method)
        return function(*call.args, **call.kwargs)


def has_fast_path(model: nn.Module) -> bool:
    """Whether PyTorch may run its fused inference path inside, which being observed turns off."""
    fused = [m for m in model.modules() if isinstance(m, _FUSED)]
    # a frozen one is likely to be switched to eval mode on the way
    return any(not m.training or not any(p.requires_grad for p in m.parameters()) for m in fused)


def device_of(model: nn.Module, call: Call | None = None) -> torch.device:
    """Where the model computes; never ``meta``, where accelerate leaves placeholders of offloaded parameters.

    Args:
        model: The model.
        call: What it is given, whose device decides where the model's own is unknown.
    """
    hooks = (hook for module in model.modules() for hook in offloading_hooks(module))
    named = (device for hook in hooks if (device := _execution_device(hook)) is not None)
    given = () if call is None else call.tensors()
    tensors = (x.device for x in itertools.chain(model.parameters(), model.buffers(), given))
    known = (device for device in itertools.chain(named, tensors) if device.type != "meta")
    return next(known, torch.device("cpu"))


def _execution_device(hook: Any) -> torch.device | None:
    """Where a hook of accelerate runs its module; None where it does not say, or is no such hook."""
    device = getattr(hook, "execution_device", None)
    if isinstance(device, int):
        return torch.device("cuda", device)
    return torch.device(device) if isinstance(device, (str, torch.device)) else None


_depth = 0


def replay_depth() -> int:
    """How many replays are running, one within another: 0 for what the trainer itself runs."""
    return _depth


@contextlib.contextmanager
def undisturbed(
    model: nn.Module,
    *,
    evaluate: bool = True,
    start: int | RandomState = 0,
    gradient: bool = False,
    state: bool = True,
) -> Iterator[None]:
    """Let ``model`` run eagerly, and put everything back afterwards.

    Args:
        model: What is going to run.
        evaluate: In eval mode; else in the mode that it is in.
        start: Where random numbers start, a seed or an earlier state.
        gradient: Whether a graph is kept, for ``torch.autograd.grad`` inside the context: it reaches no
            parameter, and no backward hook of the user's runs.
        state: Whether the model's state is put back; a copy that is thrown away keeps none, but for
            TorchScript modules, which it shares.
    """
    global _depth
    with contextlib.ExitStack() as stack:
        if gradient:
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradient))
        stack.enter_context(_random_numbers_from(start, device_of(model)))
        stack.enter_context(_same_state([m for m in model.modules() if state or is_scripted(m)]))
        if evaluate:
            for module in model.modules():
                module.training = False  # the flag alone: a `train()` of the user's may do more
        if gradient:
            for module in model.modules():  # `_same_state` puts them back
                without_backward_hooks(module)
        stack.enter_context(eagerly())  # compiled code would ignore the hooks
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


@dataclass(frozen=True)
class RandomState:
    """States of the generators that everybody draws from."""

    python: Any
    numpy: Any
    cpu: Tensor
    accelerator: list[Tensor] | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Those of this moment."""
        accelerator = None
        if device.type in ("cuda", "xpu"):  # a forward may draw on any of the devices
            accelerator = torch.get_device_module(device).get_rng_state_all()
        elif device.type == "mps":
            accelerator = [torch.mps.get_rng_state()]
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), accelerator)  # noqa: NPY002

    def restore(self, device: torch.device) -> None:
        """Go on from here."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.cpu)
        if self.accelerator is None:
            return
        if device.type == "mps":
            torch.mps.set_rng_state(self.accelerator[0])
        else:
            torch.get_device_module(device).set_rng_state_all(self.accelerator)


@contextlib.contextmanager
def _random_numbers_from(start: int | RandomState, device: torch.device) -> Iterator[None]:
    before = RandomState.now(device)
    try:
        if isinstance(start, RandomState):
            start.restore(device)
        else:
            random.seed(start)
            np.random.seed(start)  # noqa: NPY002
            # not torch.manual_seed: it would also seed the devices whose state is not kept
            torch.default_generator.manual_seed(start)
            if device.type != "cpu" and before.accelerator is not None:
                seed = torch.get_device_module(device)
                (seed.manual_seed if device.type == "mps" else seed.manual_seed_all)(start)
        yield
    finally:
        before.restore(device)


@contextlib.contextmanager
def _same_state(modules: list[nn.Module]) -> Iterator[None]:
    """Put back buffers and attributes that forward writes, in place or anew, even in eval.

    Dynamic RoPE keeps frequencies in a buffer and the length that they are for in an attribute;
    quantisation observers, caches and counters do the like.
    """
    scripted = [m for m in modules if is_scripted(m)]
    restore = [keep_state(m) for m in scripted]
    python = [m for m in modules if not is_scripted(m)]
    places = [place for m in python for place in (buffers_of(m), vars(m))] + [vars(m) for m in scripted]
    before = [dict(place) for place in places]
    parameters = [(parameters_of(m), dict(parameters_of(m))) for m in python]
    values = [value for place in before for value in place.values()]
    values += [buffer for m in scripted for buffer in m.buffers(recurse=False)]
    tensors = [
        (x, x.clone(), version_of(x)) for x in values if isinstance(x, Tensor) and not x.is_inference()
    ]
    generators = [(x, x.get_state()) for x in values if isinstance(x, torch.Generator)]
    try:
        yield
    finally:
        for place, content in (*zip(places, before, strict=True), *parameters):
            for name in place.keys() - content.keys():
                del place[name]
            place.update(content)
        for put_back in restore:
            put_back()
        for tensor, copy, version in tensors:
            if version_of(tensor) != version:
                tensor.copy_(copy)
        for generator, state in generators:
            generator.set_state(state)
