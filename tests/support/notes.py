"""An observer that writes down what it is shown."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.observe import AttentionCall, BlockCall, CallKey


class Notes:
    """Writes down what it is shown."""

    def __init__(self, fails: bool = False) -> None:
        self.seen: list[str] = []
        self.fails = fails

    def attention(self, key: CallKey, call: AttentionCall) -> None:
        if self.fails:
            raise ArithmeticError("no")
        assert not torch.is_grad_enabled()
        assert torch._C._len_torch_function_stack() == 0 or not torch._C._is_torch_function_enabled()
        self.seen.append(f"{key.module}#{key.repeat}")

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None:
        self.seen.append(f"{key.module} returned")

    def block(self, block: BlockCall) -> None:
        self.seen.append(f"{block.name} returned")
