"""What a tap reports to."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lightning_geo.observe.call import AttentionCall, BlockCall, CallKey
from lightning_geo.observe.heads.head_gradients import HeadGradientHook

__all__ = ["Observer"]


class Observer(Protocol):
    """What a tap reports to. Everything runs without gradient, autocast or torch function modes."""

    def attention(self, key: CallKey, call: AttentionCall) -> Tensor | HeadGradientHook | None:
        """One attention was computed.

        Returns:
            What to multiply the heads' outputs with before the model goes on, [B or 1, H]; or what listens to
            their gradient, which changes nothing; ``None`` to leave them alone.
        """

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None:
        """The module that computed it returned hidden states [B, N, d]."""

    def block(self, block: BlockCall) -> None:
        """A list item with attention inside returned."""
