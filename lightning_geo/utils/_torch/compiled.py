"""Private names of ``torch.compile``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

__all__ = [
    "compiled_call",
    "compiled_from",
    "compiler_stance",
    "is_compiled_frame",
    "is_compiled_function",
    "is_compiled_module",
    "set_compiled_call",
]


def is_compiled_module(module: nn.Module) -> bool:
    """Whether ``torch.compile(module)`` or ``module.compile()`` made it what it is.

    Relies on ``OptimizedModule._orig_mod`` and ``Module._compiled_call_impl``; checked on torch 2.13.0.
    """
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """Return the compiled call of a module that was compiled by ``module.compile()``; it includes its hooks.

    Relies on ``Module._compiled_call_impl``; checked on torch 2.13.0.
    """
    call: Callable[..., Any] | None = module._compiled_call_impl
    return call


def set_compiled_call(module: nn.Module, call: Callable[..., Any]) -> None:
    """Replace the compiled call of a module that was compiled by ``module.compile()``.

    Relies on ``Module._compiled_call_impl``; checked on torch 2.13.0.
    """
    module._compiled_call_impl = call


def is_compiled_function(function: Any) -> bool:
    """Whether ``torch.compile`` made it, and not ``torch.compiler.disable``, which marks functions alike.

    Relies on the marks ``_torchdynamo_orig_callable`` and ``_torchdynamo_disable``; checked on torch 2.13.0.
    """
    return hasattr(function, "_torchdynamo_orig_callable") and not getattr(
        function, "_torchdynamo_disable", False
    )


def compiled_from(function: Any) -> Any:
    """Return the function that was compiled.

    Relies on the mark ``_torchdynamo_orig_callable``; checked on torch 2.13.0.
    """
    return vars(function)["_torchdynamo_orig_callable"]


def compiler_stance() -> str | None:
    """How compiled code runs now; ``None`` while the compiler is not loaded, which takes seconds.

    There is a public ``torch.compiler.set_stance``, but no function that returns it. Relies on
    ``torch._dynamo.eval_frame._stance``; checked on torch 2.13.0.
    """
    if "torch._dynamo" not in sys.modules:
        return None
    current = getattr(torch._dynamo.eval_frame, "_stance", None)
    return getattr(current, "stance", "default")


_COMPILER = os.path.join("torch", "_dynamo", "eval_frame.py")


def is_compiled_frame(frame: FrameType | None) -> bool:
    """Whether compiled code called what runs in a frame, although it runs eagerly now.

    Relies on ``torch/_dynamo/eval_frame.py``, where compiled code is entered; checked on torch 2.13.0.
    """
    while frame is not None:
        if frame.f_code.co_filename.endswith(_COMPILER):
            return True
        frame = frame.f_back
    return False
