"""A replay leaves no trace in whatever a forward may write, and computes what the model computes."""

from __future__ import annotations

import collections
import random
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from lightning_geo.observe.replay.replica import Replica
from lightning_geo.observe.replay.twin import twin_of
from lightning_geo.utils.warn_once import WarnOnce
from support.lit import bert


class Gathers(nn.Module):
    """Writes state of one kind in every forward."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear, self.momentum = kind, nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.queue: Any = collections.deque([torch.ones(3)], maxlen=4)
        self.stats: dict[str, Any] = {"n": 0, "mean": torch.zeros(3)}
        self.graph = [self.linear(torch.ones(1, 3))]  # training's own, with a graph
        self.inner = SimpleNamespace(
            numpy=np.random.default_rng(1), python=random.Random(2), torch=torch.Generator().manual_seed(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "containers":
            self.queue.append(x.detach()[0])
            self.stats["n"] += 1
            self.stats["mean"] += x.detach().mean(0)
            self.graph.append(x)
        elif self.kind == "generators":
            self.inner.numpy.random()
            self.inner.python.random()
            torch.rand(1, generator=self.inner.torch)
        elif self.kind == "buffers":
            self.norm.running_mean += 1
        elif self.kind == "parameters":
            with torch.no_grad():
                self.linear.weight.mul_(0.9)
                self.linear.bias.data.mul_(0.5)  # no version counts it
                self.momentum.weight.data = self.momentum.weight.data * 0.9 + self.linear.weight.data
                self.momentum.bias = nn.Parameter(torch.zeros(3))
        return self.norm(self.linear(x)) + self.momentum(x)


KINDS = ["containers", "generators", "buffers", "parameters"]


def everything(model: Gathers) -> list[Any]:
    """All of its state as plain values."""
    inner = model.inner
    generators = [inner.numpy.bit_generator.state, inner.python.getstate(), inner.torch.get_state().tolist()]
    tensors = [x.tolist() for x in (*model.parameters(), *model.buffers(), *model.queue, *model.graph)]
    versions = [(id(x), x._version, x.data_ptr()) for x in model.parameters()]
    return [*generators, *tensors, versions, model.stats["n"], model.stats["mean"].tolist(), model.training]


def replayed(model: nn.Module, x: Tensor, times: int = 3) -> tuple[list[Tensor], list[str]]:
    """What it gives time after time, and what is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replica, results = Replica(model, "m", WarnOnce(False)), []
        for _ in range(times):
            replica.try_out(lambda m: m(x), torch.no_grad)
            with replica.running() as running, replica.once(running):
                results.append(running(x))
    return results, [str(w.message) for w in caught]


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_changes_nothing_that_a_forward_writes(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Gathers(kind), torch.randn(2, 3)
    before = everything(model)
    results, said = replayed(model, x)
    assert everything(model) == before
    assert said == []
    alone = Gathers(kind)
    alone.load_state_dict(model.state_dict())
    for result in results:  # every replay starts from the same state
        assert torch.equal(result, results[0])
    assert torch.equal(results[0], alone.eval()(x))
    model(x)
    assert everything(model) != before  # else the test could not fail


def test_what_cannot_be_copied_is_replayed_in_place_and_said() -> None:
    model, x = Gathers("parameters"), torch.randn(2, 3)
    model.lock = threading.Lock()
    before = [p.tolist() for p in model.parameters()]
    identities = [(id(p), p.data_ptr()) for p in model.parameters()]
    results, said = replayed(model, x)
    assert [p.tolist() for p in model.parameters()] == before
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == identities
    assert torch.equal(results[0], results[1])
    assert len(said) == 1
    assert "m cannot be copied for a replay: TypeError: cannot pickle '_thread.lock' object" in said[0]


class Clamped(nn.Module):
    """Its forward writes the parameter through ``.data``; most often to the value that it has."""

    def __init__(self, *, locked: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 0.5))
        if locked:
            self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(0, 1)
        return x * self.weight


@pytest.mark.filterwarnings("ignore:GeometryMonitor")
@pytest.mark.parametrize("locked", [False, True])
def test_a_write_that_changed_nothing_the_first_time_changes_nothing_later(locked: bool) -> None:
    model, x = Clamped(locked=locked), torch.ones(3)
    replica = Replica(model, "m", WarnOnce(False))
    replica.try_out(lambda m: m(x), torch.no_grad)
    with torch.no_grad():
        model.weight.fill_(2.0)
    with replica.running() as running, replica.once(running):
        assert running(x).tolist() == [1, 1, 1]
    assert model.weight.tolist() == [2, 2, 2]


class Counts(nn.Module):
    """Counts in a buffer, in place and anew, in an attribute, and draws from its own generator."""

    def __init__(self, *, locked: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(()))
        self.number, self.generator = 0, torch.Generator().manual_seed(0)
        if locked:
            self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.latest = self.latest + 1
        self.number += 1
        if not hasattr(self, "first"):
            self.first = self.number
        draw = torch.rand(1, generator=self.generator)
        return x + self.calls + 10 * self.latest + 100 * self.number + 1000 * self.first + draw

    def state(self) -> list[Any]:
        drawn = self.generator.get_state().tolist()
        return [self.calls, self.calls.tolist(), self.latest, self.number, self.first, drawn, self.training]


@pytest.mark.filterwarnings("ignore:GeometryMonitor")
@pytest.mark.parametrize("locked", [False, True])
def test_what_was_remembered_is_replayed_after_training_has_moved_it(locked: bool) -> None:
    model, x = Counts(locked=locked), torch.zeros(1)
    replica = Replica(model, "m", WarnOnce(False))
    replica.remember()
    expected = model(x)
    model(x)
    before = model.state()
    replica.try_out(lambda m: m(x), torch.no_grad)
    for _ in range(2):
        with replica.running() as running, replica.once(running):
            assert torch.equal(running(x), expected)
            assert not running.training
    after = model.state()
    assert all(now is then for now, then in zip(after[:3:2], before[:3:2], strict=True))  # the same tensors
    assert after == before
    replica.forget()
    with replica.running() as running, replica.once(running):
        assert not torch.equal(running(x), expected)


def test_a_model_at_fault_raises_as_itself() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        replayed(nn.Linear(3, 3), torch.ones(2, 5))


def test_a_twin_shares_parameters_and_nothing_else() -> None:
    model = bert()
    twin = twin_of(model)
    pairs = list(zip(model.named_parameters(), twin.named_parameters(), strict=True))
    assert all(n == m and p is not q and p.data_ptr() == q.data_ptr() for (n, p), (m, q) in pairs)
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
    assert all(b.data_ptr() != c.data_ptr() for b, c in zip(model.buffers(), twin.buffers(), strict=True))
    own = twin_of(model, {"classifier.bias"})
    assert own.classifier.bias.data_ptr() != model.classifier.bias.data_ptr()
    assert own.classifier.weight.data_ptr() == model.classifier.weight.data_ptr()


def closed_over() -> nn.Module:
    model = nn.Linear(3, 3)
    forward = model.forward
    model.forward = lambda x: forward(x) + 1  # type: ignore[method-assign]
    return model


def compiled_forward() -> nn.Module:
    model = nn.Linear(3, 3)
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    return model


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = norm(nn.Linear(3, 3))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.startswith(("weight", "parametrizations"))).mul_(2)
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "build",
    [
        closed_over,
        compiled_forward,
        lambda: torch.compile(nn.Linear(3, 3), backend="eager"),
        lambda: normed(weight_norm),
        lambda: normed(parametrizations.weight_norm),
        lambda: normed(parametrizations.spectral_norm),
        lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 4),
    ],
)
def test_what_replaces_a_forward_or_its_weights_is_the_twins_own(build: Callable[[], nn.Module]) -> None:
    """A hook or closure that a model computes with runs, on the twin's modules."""
    torch.manual_seed(0)
    model, x, calls = nn.Sequential(build()), torch.randn(2, 3), []
    results, said = replayed(model, x)
    assert said == []
    model[0].register_forward_pre_hook(lambda *_: calls.append("original"))
    assert torch.equal(twin_of(model).eval()(x), results[0])
    assert calls == []
    assert torch.equal(results[0], model.eval()(x))
    assert calls == ["original"]
