"""What runs undisturbed leaves no trace, and starts where it is told to."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_geo.observe.replay.torch_compile import is_compiled
from lightning_geo.observe.replay.undisturbed_run import (
    Call,
    RandomState,
    has_fast_path,
    replay_depth,
    undisturbed,
)
from support.lit import bert


class Restless(nn.Module):
    """Changes whatever a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("longest", torch.zeros(1))
        self.register_buffer("late", None)
        self.register_buffer("early", torch.ones(2))
        self.plain = torch.zeros(2)
        self.length = 4
        self.own = torch.Generator().manual_seed(5)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.longest = self.longest + 1
        self.late = torch.ones(1)
        del self.early
        self.plain.mul_(2).add_(1)
        self.length, self.new = 9, "attribute"
        self.eval()
        noise = torch.rand(3, generator=self.own) + torch.rand(3) + random.random() + np.random.rand()
        if self.fails:
            raise ArithmeticError("on the way")
        return self.norm(x) + noise


def state(model: nn.Module) -> dict[str, Any]:
    """All of it, as plain values."""
    result: dict[str, Any] = {
        "random": (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
    }
    for name, module in model.named_modules():
        for kind, values in (("buffer", module._buffers), ("attribute", vars(module))):
            for key, value in values.items():
                plain = value.tolist() if isinstance(value, Tensor) else value
                plain = value.get_state().tolist() if isinstance(value, torch.Generator) else plain
                if not isinstance(value, dict):
                    result[f"{kind} {name}.{key}"] = plain
    return result


@pytest.mark.parametrize("evaluate", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(fails: bool, evaluate: bool) -> None:
    model = Restless()
    model.norm.eval()  # a frozen part keeps its own mode
    model.fails = fails
    before, buffers = state(model), dict(model.named_buffers())
    try:
        with undisturbed(model, evaluate=evaluate):
            assert model.training is not evaluate
            assert not torch.is_grad_enabled()
            assert not model(torch.randn(4, 3)).requires_grad
            assert state(model) != before
    except ArithmeticError:
        assert fails
    assert state(model) == before
    assert all(
        new is old for new, old in zip(dict(model.named_buffers()).values(), buffers.values(), strict=True)
    )


def test_train_is_not_called() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            raise AssertionError("`train` may do more than set a flag")

    model = nn.Sequential(Merging(2, 2))
    with undisturbed(model):
        assert not model[0].training
    assert model[0].training


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_random_numbers_start_anew_each_time_or_where_they_were() -> None:
    model = nn.Linear(1, 1)
    with undisturbed(model):
        first = draws()
    draws()
    with undisturbed(model, start=0):
        assert draws() == first
    with undisturbed(model, start=1):
        assert all(one != other for one, other in zip(draws(), first, strict=True))
    here = RandomState.now(torch.device("cpu"))
    once = draws()
    with undisturbed(model, start=here):
        assert draws() == once
    assert draws() != once


def test_depth_counts_replays_within_replays() -> None:
    model = nn.Linear(1, 1)

    def fail() -> None:
        with undisturbed(model):
            assert replay_depth() == 2
            raise ZeroDivisionError

    with undisturbed(model):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert replay_depth() == 1
    assert replay_depth() == 0


class Decorated(nn.Module):
    @torch.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return x


def forward_alone() -> nn.Module:
    model = nn.Linear(2, 2)
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def in_place() -> nn.Module:
    model = nn.Linear(2, 2)
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("build", "compiled"),
    [
        (lambda: torch.compile(nn.Linear(2, 2), backend="eager"), True),
        (in_place, True),
        (forward_alone, True),
        (Decorated, True),
        (lambda: nn.Linear(2, 2), False),
    ],
)
def test_compiled_modules_are_told_and_run_eagerly(build: Callable[[], nn.Module], compiled: bool) -> None:
    model = nn.Sequential(build())
    assert is_compiled(model) is compiled
    with undisturbed(model):
        assert torch._dynamo.eval_frame._stance.stance == "force_eager"  # functions may be compiled too
        model(torch.ones(2, 2))
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize(
    ("mode", "frozen", "fused"), [(True, False, False), (False, False, True), (True, True, True)]
)
def test_modules_that_may_take_the_fast_path_are_told(mode: bool, frozen: bool, fused: bool) -> None:
    attention = nn.MultiheadAttention(4, 2).train(mode).requires_grad_(not frozen)
    assert has_fast_path(nn.Sequential(attention)) is fused
    assert not has_fast_path(bert().eval())


def test_a_batch_is_keywords_positions_or_the_one_argument() -> None:
    x, y = torch.ones(2), torch.zeros(3)
    assert Call.from_batch({"x": x}) == Call((), {"x": x})
    assert Call.from_batch((x, 2)).args == (x, 2)
    assert Call.from_batch(x).args == (x,)
    call = Call((x, [y, None]), {"more": {"y": y, "n": 3}})
    assert [t.numel() for t in call.tensors()] == [2, 3, 3]
    doubled = call.map(lambda t: 2 * t)
    assert doubled.args[1][1] is None
    assert doubled.kwargs["more"]["n"] == 3
    assert torch.equal(doubled.args[0], 2 * x)
