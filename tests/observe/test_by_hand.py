"""Attention by hand is recognised without keeping what the model has let go."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from lightning_geo.observe import AttentionCall, BlockCall, CallKey, Tap
from lightning_geo.observe.attention.by_hand_calls import assembled
from lightning_geo.observe.coverage import LeftOutError


class Nobody:
    def attention(self, key: CallKey, call: AttentionCall) -> None: ...
    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None: ...
    def block(self, block: BlockCall) -> None: ...


class Layer(nn.Module):
    """Writes down weak references to all that is as large as its scores."""

    num_heads = 2

    def __init__(self, large: list[weakref.ref[Tensor]]) -> None:
        super().__init__()
        self.qkv, self.large = nn.Linear(8, 24), large

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT
        mask = torch.zeros(len(x), 1, x.shape[1], x.shape[1])
        masked = scores + mask
        p = masked.softmax(-1)
        discarded = (scores * 2).softmax(-1)
        self.large += map(weakref.ref, (scores, mask, masked, p, discarded))
        return x + (p @ v).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large: list[weakref.ref[Tensor]] = []
        self.layers = nn.ModuleList(Layer(self.large) for _ in range(3))
        self.alive: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            self.alive.append(sum(x() is not None for x in self.large))
        return x


@pytest.mark.parametrize("gradient", [False, True])
def test_nothing_of_a_layer_is_kept_once_it_ended(gradient: bool) -> None:
    model = Model()
    tap = Tap(model)
    with torch.set_grad_enabled(gradient):
        model(torch.randn(2, 5, 8))
        plain, model.alive[:] = list(model.alive), []
        model.large.clear()
        with tap.open(Nobody()):
            model(torch.randn(2, 5, 8))
    assert tap.coverage.measured == 3
    assert tap.failures == []
    if not gradient:
        assert plain == [0, 0, 0]
    assert model.alive == plain


def test_blocks_of_keys_are_joined_only_where_all_or_none_are_known() -> None:
    """A row may pick a block twice, which keys alone tell."""
    scores, key = torch.zeros(1, 2, 3, 4), torch.rand(1, 2, 4, 8)
    known = AttentionCall(None, key, None, None, scores=scores, offset=None)
    unknown = AttentionCall(None, None, None, None, scores=scores, offset=None)
    for pieces in ([known, known], [unknown, unknown]):
        assert assembled(pieces).lengths == (1, 6, 4)
    with pytest.raises(LeftOutError, match="a key could count twice"):
        assembled([known, unknown])
