"""Run a model once more without training noticing: no gradient, no draw, no flag and no buffer changes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

__all__ = ["Call", "is_compiled", "undisturbed"]


@dataclass
class Call:
    """Arguments of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_batch(cls, batch: Any) -> Call:
        """A mapping is keyword arguments, a tuple or list positional ones, anything else the one argument."""
        if isinstance(batch, Mapping):
            return cls((), dict(batch))
        return cls(tuple(batch)) if isinstance(batch, (tuple, list)) else cls((batch,))

    def map(self, function: Any) -> Call:
        """Apply ``function`` to every tensor."""
        args, kwargs = apply_to_collection([list(self.args), dict(self.kwargs)], Tensor, function)
        return Call(tuple(args), kwargs)

    def to(self, device: torch.device) -> Call:
        """Move every tensor."""
        return self.map(lambda x: x.to(device))

    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        found: list[Tensor] = []
        self.map(lambda x: found.append(x) or x)
        return found


def is_compiled(model: nn.Module) -> bool:
    """Whether any module runs through ``torch.compile``, in either form."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter (or buffer) is."""
    tensor = next((t for t in (*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, evaluate: bool = True, seed: int | None = 0) -> Iterator[None]:
    """Let ``model`` run without gradient, eagerly, and put everything back afterwards.

    Args:
        model: What is going to run.
        evaluate: In eval mode; else in the mode that it is in.
        seed: Where random numbers start; ``None`` goes on from where they are. Restored either way.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_same_random_numbers(device_of(model), seed))
        stack.enter_context(_same_buffers(model))
        if evaluate:
            stack.enter_context(_eval_mode(model))
        if is_compiled(model):  # compiled code would ignore the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Clear the flags alone: a ``train()`` of the user's may do more (merge adapters, say)."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _same_random_numbers(device: torch.device, seed: int | None) -> Iterator[None]:
    accelerator = [device] if device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=accelerator):
            if seed is not None:
                # not torch.manual_seed: it would also seed the devices that were not forked
                torch.random.default_generator.manual_seed(seed)
                for index in accelerator:
                    with torch.cuda.device(index):
                        torch.cuda.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Some models write buffers in forward even in eval (dynamic RoPE, quantisation observers)."""
    before = [
        (module, name, buffer, buffer.clone(), buffer.is_inference() or buffer._version)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, copy, version in before:
            if not buffer.is_inference() and buffer._version != version:
                buffer.copy_(copy)
            module._buffers[name] = buffer
