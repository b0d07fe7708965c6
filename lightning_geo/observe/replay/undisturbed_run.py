"""Run a model again without effect on training: gradients, random states, flags and buffers stay the same."""

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
from lightning_geo.observe.replay.contents import TREE, Contents
from lightning_geo.observe.replay.torch_compile import eagerly
from lightning_geo.observe.replay.torchscript import is_scripted, keep_state
from lightning_geo.utils._torch import buffers_of, parameters_of, without_backward_hooks
from lightning_geo.utils._transformers import offloading_hooks

#: Modules that compute in another way under a torch function mode, with slightly different results.
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)

__all__ = ["Call", "RandomState", "device_of", "has_fast_path", "replay_depth", "undisturbed"]


@dataclass
class Call:
    """Arguments of one call of a model.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        method: Name of a method of the LightningModule to call instead of the observed model itself: one of
            its steps, or ``forward``.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    method: str = ""

    @classmethod
    def from_batch(cls, batch: Any) -> Call:
        """Take a mapping as keyword arguments, a tuple or list as positional ones, else a single argument."""
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
        """Return all tensors, in order."""
        tensors: list[Tensor] = []
        self.map(tensors.append)
        return tensors

    def independent(self) -> Call:
        """Return the same call with caches and containers of its own."""
        return Call(*independent(self.args, self.kwargs), self.method)

    def run(self, model: nn.Module) -> Any:
        """Call ``model`` with a copy of the arguments, so that the call can be repeated."""
        call = self.independent()
        function = model if call.method in ("", "forward") else getattr(model, call.method)
        return function(*call.args, **call.kwargs)


def has_fast_path(model: nn.Module) -> bool:
    """Whether PyTorch may use its fused inference path in the model, which observing turns off."""
    fused = [m for m in model.modules() if isinstance(m, _FUSED)]
    # A frozen module is likely to be switched to eval mode within the step.
    return any(not m.training or not any(p.requires_grad for p in m.parameters()) for m in fused)


def device_of(model: nn.Module, call: Call | None = None) -> torch.device:
    """Return the device on which a model computes, never ``meta``, where accelerate keeps placeholders.

    Args:
        model: The model.
        call: The model's inputs, whose device counts if the model's own is unknown.
    """
    hooks = (hook for module in model.modules() for hook in offloading_hooks(module))
    named = (device for hook in hooks if (device := _execution_device(hook)) is not None)
    given = () if call is None else call.tensors()
    tensors = (x.device for x in itertools.chain(model.parameters(), model.buffers(), given))
    known = (device for device in itertools.chain(named, tensors) if device.type != "meta")
    return next(known, torch.device("cpu"))


def _execution_device(hook: Any) -> torch.device | None:
    """Return the device on which a hook of accelerate runs its module; None if the hook names none."""
    device = getattr(hook, "execution_device", None)
    if isinstance(device, int):
        return torch.device("cuda", device)
    return torch.device(device) if isinstance(device, (str, torch.device)) else None


_depth = 0


def replay_depth() -> int:
    """Return the number of nested replays that are running; 0 for the trainer's own calls."""
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
    """Run ``model`` eagerly while the context is open, and restore everything at the end.

    Args:
        model: The model to run.
        evaluate: Whether to run in eval mode; otherwise in the current mode.
        start: Start of the random numbers, a seed or an earlier state.
        gradient: Whether to record a graph for ``torch.autograd.grad`` inside the context. The user's
            backward hooks do not run.
        state: Whether to restore the model's state. A copy needs no restoring, except for its TorchScript
            modules, which it shares with the model.
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
                module.training = False  # not `eval()`: a user's class may extend it
        if gradient:
            for module in model.modules():  # `_same_state` restores the hooks
                without_backward_hooks(module)
        stack.enter_context(eagerly())  # compiled code ignores hooks that were added later
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


@dataclass(frozen=True)
class RandomState:
    """States of the global random generators."""

    python: Any
    numpy: Any
    cpu: Tensor
    accelerator: list[Tensor] | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Return the current states."""
        accelerator = None
        if device.type in ("cuda", "xpu"):  # a model on several devices draws on each of them
            accelerator = torch.get_device_module(device).get_rng_state_all()
        elif device.type == "mps":
            accelerator = [torch.mps.get_rng_state()]
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), accelerator)  # noqa: NPY002

    def restore(self, device: torch.device) -> None:
        """Set the generators to these states."""
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
            # `torch.manual_seed` would also seed devices whose states were not saved: seed the others alone.
            torch.default_generator.manual_seed(start)
            if device.type != "cpu" and before.accelerator is not None:
                seed = torch.get_device_module(device)
                (seed.manual_seed if device.type == "mps" else seed.manual_seed_all)(start)
        yield
    finally:
        before.restore(device)


@contextlib.contextmanager
def _same_state(modules: list[nn.Module]) -> Iterator[None]:
    """Restore buffers, attributes and what these lead to, which a forward pass writes even in eval mode.

    Dynamic RoPE keeps frequencies in a buffer and their sequence length in an attribute; quantisation
    observers, caches, queues and counters do likewise.
    """
    scripted = [m for m in modules if is_scripted(m)]
    restore = [keep_state(m) for m in scripted]
    python = [m for m in modules if not is_scripted(m)]
    places = [place for m in python for place in (buffers_of(m), vars(m))] + [vars(m) for m in scripted]
    before = [dict(place) for place in places]
    parameters = [(parameters_of(m), dict(parameters_of(m))) for m in python]
    values = [value for place in before for name, value in place.items() if name not in TREE]
    values += [buffer for m in scripted for buffer in m.buffers(recurse=False)]
    contents = Contents(values, known=modules)
    try:
        yield
    finally:
        for place, content in (*zip(places, before, strict=True), *parameters):
            for name in place.keys() - content.keys():
                del place[name]
            place.update(content)
        for put_back in restore:
            put_back()
        contents.restore()
