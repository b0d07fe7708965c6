"""What a hook on an attention's result hears, holds and leaves behind."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_geo.observe import AttentionCall, HeadGradientHook


def call_of(output: Tensor) -> AttentionCall:
    return AttentionCall(None, None, None, output, scores=torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize("merged", [True, False])
def test_the_slope_of_each_head_whatever_the_layout(merged: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    result = torch.randn(2, 5, 12, generator=generator).requires_grad_()  # [B, N, H * D]
    result_given = result if merged else result.unflatten(-1, (3, 4))
    weight = torch.randn(2, 5, 12, generator=generator)
    told: list[Tensor] = []
    hook = HeadGradientHook(told.append)
    hook.attach((result_given, None), call_of(result_given.detach().view(2, 5, 3, 4).transpose(1, 2)))
    (result_given.flatten(2) * weight).sum().backward()
    expected = (result.detach() * weight).view(2, 5, 3, 4).sum((1, 3))
    torch.testing.assert_close(told, [expected])
    assert hook.absence is None
    assert torch.equal(result.grad, weight)


def test_activations_are_let_go_when_backward_came() -> None:
    """With accumulation there are as many of them as micro-batches."""
    array = np.ones((1, 2, 3, 4), np.float32)
    alive = weakref.ref(array)
    result = torch.from_numpy(array)
    del array
    result.requires_grad_()
    told: list[Tensor] = []
    hook = HeadGradientHook(told.append)
    hook.attach(result, call_of(result.detach()))
    loss = (result * 2).sum()
    del result
    assert alive() is not None
    loss.backward()
    del loss
    assert alive() is None
    assert told[0].tolist() == [[24.0, 24.0]]


def test_what_cannot_be_heard_says_why() -> None:
    told: list[Tensor] = []
    hook = HeadGradientHook(told.append)
    hook.attach(torch.ones(1, 2, 3, 4), call_of(torch.ones(1, 2, 3, 4)))
    assert hook.absence is not None
    assert "gradient does not reach it" in hook.absence
    result = torch.ones(1, 2, 3, 4, requires_grad=True)
    hook = HeadGradientHook(told.append)
    hook.attach(result, call_of(result.detach().clone()))
    assert hook.absence == "the heads' outputs are no view of the attention function's result"
    hook = HeadGradientHook(lambda slopes: slopes.does_not_exist)
    hook.attach(result, call_of(result.detach()))
    result.sum().backward()  # not the backward's concern
    assert hook.absence is not None
    assert hook.absence.startswith("AttributeError")
    assert told == []
    hook.remove()
    hook.remove()
    assert not result._backward_hooks
