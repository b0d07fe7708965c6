"""Which calls of a model are part of training: those that a backward can come through."""

from __future__ import annotations

import sys
from types import FrameType

import torch
from torch.autograd.function import BackwardCFunction

__all__ = ["begins_training"]


def begins_training() -> bool:
    """Whether a call that begins now is part of training.

    With gradients off it is not: the pass of a reference model, generation, a frozen teacher. Functions with
    a backward of their own turn them off in their forward too, and are part: reentrant checkpointing.
    """
    if torch.is_grad_enabled():
        return True
    if torch.is_inference_mode_enabled():
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if "ctx" in frame.f_code.co_varnames:
            context = frame.f_locals.get("ctx")
            if isinstance(context, BackwardCFunction):
                # below `no_grad` nothing that it is given requires a gradient
                return any(context.needs_input_grad)
        frame = frame.f_back
    return False
