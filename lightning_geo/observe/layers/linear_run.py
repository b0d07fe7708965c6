"""Runs of linear modules inside an attention module."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from lightning_geo.utils._transformers import is_conv1d

__all__ = ["LinearRun", "is_linear"]


class LinearRun(NamedTuple):
    """One linear module's run inside an attention module.

    Args:
        name: Last part of its path.
        module: The module.
        x: Its input ``[..., d]``.
        y: Its output ``[..., features]``.
    """

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor


def is_linear(module: nn.Module) -> bool:
    """Whether a module is ``nn.Linear``, GPT-2's ``Conv1D``, or one of them in an adapter of peft."""
    base = getattr(module, "base_layer", None)
    if isinstance(base, nn.Module):
        return is_linear(base)
    return isinstance(module, nn.Linear) or is_conv1d(module)
