"""What lies inside a model's attributes is put back: whatever holds it, and whatever a forward did to it."""

from __future__ import annotations

import collections
import functools
import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_geo.observe.replay.contents import Contents
from lightning_geo.observe.replay.replica import Replica
from lightning_geo.observe.replay.undisturbed_run import undisturbed
from lightning_geo.utils.warn_once import WarnOnce


class Slots:
    """Has no dictionary."""

    __slots__ = ("empty", "held")

    def __init__(self, held: Any) -> None:
        self.held = held

    def method(self) -> None:
        """Is bound to what it holds."""


class Frozen(dict[str, Any]):
    """A dictionary whose own methods refuse."""

    def __setitem__(self, name: str, value: Any) -> None:
        raise AssertionError("a method of the user's was called")

    clear = update = __setitem__  # type: ignore[assignment]


class Hidden(nn.Module):
    """A module in a list, which torch does not register."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.held = held


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda held: [held, 1],
    "dict": lambda held: {"held": held, "b": 2},
    "default": lambda held: collections.defaultdict(list, held=held),
    "ordered": lambda held: collections.OrderedDict(held=held, b=3),
    "frozen": lambda held: Frozen(held=held),
    "deque": lambda held: collections.deque([held, 3], maxlen=2),
    "tuple": lambda held: (held, 4),
    "object": lambda held: SimpleNamespace(held=held),
    "slots": Slots,
    "module": Hidden,
    "method": lambda held: Slots(held).method,
    "partial": lambda held: functools.partial(print, held),
}

LEAVES: dict[str, Callable[[], Any]] = {
    "set": lambda: {1, 2},
    "tensor": lambda: torch.arange(3.0),
    "learned": lambda: torch.ones(2, requires_grad=True),
    "array": lambda: np.arange(3.0),
    "torch": lambda: torch.Generator().manual_seed(1),
    "numpy": lambda: np.random.default_rng(1),
    "old numpy": lambda: np.random.RandomState(1),
    "python": lambda: random.Random(1),
}


def inside(value: Any) -> Any:
    """What a value holds: a dictionary, a list, or a leaf's state as a plain value."""
    if isinstance(value, (Tensor, np.ndarray)):
        return str(value.tolist())
    if isinstance(value, torch.Generator):
        return str(value.get_state().tolist())
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return str(value.get_state())
    if isinstance(value, random.Random):
        return str(value.getstate())
    if isinstance(value, Slots):
        return {name: getattr(value, name) for name in Slots.__slots__ if hasattr(value, name)}
    if isinstance(value, (SimpleNamespace, Hidden)):
        return vars(value)
    if isinstance(value, functools.partial):
        return list(value.args)
    return [value.__self__] if hasattr(value, "__self__") and not isinstance(value, type) else value


def picture(value: Any) -> Any:
    """A value with everything inside, by identity and in order."""
    held = inside(value)
    if isinstance(held, dict):
        return id(value), [(name, picture(item)) for name, item in held.items()]
    if isinstance(held, (list, tuple, set, collections.deque)):
        return id(value), [picture(item) for item in held]
    return id(value), held


def spoil(value: Any, draw: random.Random) -> None:
    """Change a value, or something inside, as a forward may."""
    held, deeper = inside(value), draw.random() < 0.6
    if isinstance(value, Tensor):
        with torch.no_grad():
            value.mul_(2).add_(1)
    elif isinstance(value, np.ndarray):
        value += 1
    elif isinstance(value, torch.Generator):
        torch.rand(1, generator=value)
    elif isinstance(value, np.random.RandomState):
        value.rand()
    elif isinstance(value, (np.random.Generator, random.Random)):
        value.random()
    elif isinstance(value, set):
        value.add(7)
    elif isinstance(value, (tuple, functools.partial)) or (callable(value) and not isinstance(value, Hidden)):
        spoil(held[0], draw)
    elif isinstance(value, (list, collections.deque)):
        if deeper:
            spoil(value[0], draw)
        draw.choice([lambda: value.append(torch.zeros(1)), value.clear, value.reverse, value.pop])()
    elif isinstance(value, dict):
        if deeper:
            spoil(value["held"], draw)
        kind: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
        kept = kind.pop(value, "held")
        if draw.random() < 0.5:  # at the end, where it was not
            kind.__setitem__(value, "new", 1)
            kind.__setitem__(value, "held", kept)
    else:
        if deeper:
            spoil(value.held, draw)
        draw.choice([lambda: setattr(value, "empty", 1), lambda: setattr(value, "held", None),
                     lambda: delattr(value, "held")])()  # fmt: skip


def built(holders: list[str], leaf: str) -> Any:
    """A leaf inside of holders."""
    return functools.reduce(lambda held, name: HOLDERS[name](held), holders, LEAVES[leaf]())


graphs = st.builds(
    built, st.lists(st.sampled_from(sorted(HOLDERS)), max_size=3), st.sampled_from(sorted(LEAVES))
)


@given(value=graphs, seed=st.integers(0, 99))
def test_everything_inside_is_put_back(value: Any, seed: int) -> None:
    before = picture(value)
    contents = Contents([value])
    spoil(value, random.Random(seed))
    assert picture(value) != before
    contents.restore()
    assert picture(value) == before


class Holds(nn.Module):
    """Its forward changes what it holds; a lock keeps it from being copied."""

    def __init__(self, held: Any, *, locked: bool) -> None:
        super().__init__()
        self.linear, self.held, self.seed = nn.Linear(3, 3), held, 0
        if locked:
            self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        spoil(self.held, random.Random(self.seed))
        return self.linear(x)  # type: ignore[no-any-return]


@given(value=graphs, seed=st.integers(0, 99), locked=st.booleans())
def test_a_replay_leaves_no_trace_inside_of_objects(value: Any, seed: int, locked: bool) -> None:
    model, x = Holds(value, locked=locked), torch.ones(1, 3)
    model.seed, before = seed, picture(value)
    replica = Replica(model, "m", WarnOnce(False))
    with pytest.warns(UserWarning, match="cannot be copied") if locked else torch.no_grad():
        replica.try_out(lambda m: m(x), torch.no_grad)
    with replica.running() as running, replica.once(running):
        running(x)
    assert picture(value) == before
    with undisturbed(model):
        model(x)
    assert picture(value) == before
    model(x)
    assert picture(value) != before


class Counted(nn.Module):
    """Fails at its third call, as a model does that is too far from where it began."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 3), SimpleNamespace(count=0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.count += 1
        if self.calls.count == 3:
            raise RuntimeError("at the third call")
        return self.linear(x)  # type: ignore[no-any-return]


def test_a_forward_that_fails_in_its_trial_fails_in_training_too() -> None:
    """The model itself is run to see whose error it is, and must not be moved by that."""
    model, x = Counted(), torch.ones(1, 3)
    model.calls.count = 2
    with pytest.raises(RuntimeError, match="third call"):
        Replica(model, "m", WarnOnce(False)).try_out(lambda m: m(x), torch.no_grad)
    assert model.calls.count == 2
    with pytest.raises(RuntimeError, match="third call"):
        model(x)


def test_what_was_remembered_inside_of_objects_is_replayed() -> None:
    held = SimpleNamespace(
        mean=torch.zeros(3), queue=collections.deque([torch.ones(3)]), rows=(torch.ones(3),)
    )

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.held, self.lock = nn.Linear(3, 3), held, threading.Lock()

        def forward(self, x: Tensor) -> Tensor:
            held.mean += 1
            held.queue.append(held.queue[-1] * 2)
            held.rows[0].mul_(3)
            return x + held.mean + held.queue[-1] + held.rows[0]  # type: ignore[no-any-return]

    model, x = Reads(), torch.zeros(3)
    replica = Replica(model, "m", WarnOnce(False))
    replica.remember()
    expected = model(x)
    model(x)
    before = picture(held)
    with pytest.warns(UserWarning, match="cannot be copied"):
        replica.try_out(lambda m: m(x), torch.no_grad)
    for _ in range(2):
        with replica.running() as running, replica.once(running):
            assert torch.equal(running(x), expected)
    assert picture(held) == before


def test_a_view_of_memory_that_was_freed_is_left_alone() -> None:
    """To read it would end the process."""
    gathered = torch.ones(8)
    model = nn.Linear(2, 2)
    model.gathered = gathered[:4]
    gathered.untyped_storage().resize_(0)
    with undisturbed(model):
        model.other = 1  # type: ignore[assignment]
    assert not hasattr(model, "other")
    assert not Contents([model.gathered]).tensors


def test_a_trainer_and_what_holds_data_are_not_looked_into() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    data = torch.utils.data.TensorDataset(torch.ones(5))
    assert not Contents([{"optimizer": optimizer, "data": [data], "weight": weight}]).tensors
