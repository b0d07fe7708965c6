"""The protocol of a tap's observers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lightning_geo.observe.call import AttentionCall, BlockCall, CallKey
from lightning_geo.observe.heads.head_gradients import HeadGradientHook

__all__ = ["Observer"]


class Observer(Protocol):
    """Receives the events of a tap. Methods run without gradient, autocast and torch function modes."""

    def attention(self, key: CallKey, call: AttentionCall) -> Tensor | HeadGradientHook | None:
        """Receive one attention call.

        Returns:
            Factors by which the heads' outputs are multiplied before the model continues, [B or 1, H]; or a
            hook that reads their gradient and changes nothing; ``None`` to leave them alone.
        """

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None:
        """Receive the hidden states [B, N, d] that an attention module returned."""

    def block(self, block: BlockCall) -> None:
        """Receive one run of a layer with attention inside."""
