"""Private names of attention over sequences of varying length."""

from __future__ import annotations

from typing import Any

__all__ = [
    "varlen_operators",
]


def varlen_operators() -> tuple[Any, Any]:
    """The operators behind ``varlen_attn`` and ``varlen_attn_out``; ``None`` for each where torch has none.

    Relies on ``torch.ops.torch_attn._varlen_attn`` and ``_varlen_attn_out``, which importing
    ``torch.nn.attention.varlen`` registers; checked on torch 2.13.0.
    """
    try:
        import torch.nn.attention.varlen

        return torch.ops.torch_attn._varlen_attn, torch.ops.torch_attn._varlen_attn_out
    except (ImportError, AttributeError):
        return None, None
