"""Recognises the calls of a model that are part of training: a backward pass can reach them."""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch.autograd.function import BackwardCFunction

from lightning_geo.utils._torch import in_backward

__all__ = ["begins_training"]


def begins_training() -> bool:
    """Whether a call that begins now is part of training.

    A call with gradients off is not: a reference model's pass, generation, a frozen teacher. Custom autograd
    functions, such as reentrant checkpointing, also turn gradients off in their forward, but are part of
    training: the call stack shows them. A call that checkpointing repeats in the backward pass is not.
    """
    if in_backward():
        return False
    if torch.is_grad_enabled():
        return True
    if torch.is_inference_mode_enabled():
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if "ctx" in frame.f_code.co_varnames:
            context = frame.f_locals.get("ctx")
            if isinstance(context, BackwardCFunction):
                # Called under `no_grad`, the function has no input that needs a gradient.
                return any(context.needs_input_grad)
        frame = frame.f_back
    return False
