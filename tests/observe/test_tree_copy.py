"""A copied tree is what ``copy.deepcopy`` makes of it, object by object."""

from __future__ import annotations

import copy
import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from families.models import FAMILIES
from lightning_geo.observe.replay.tree_copy import copy_tree
from support.lit import Classifier


class Slotted(nn.Module):
    __slots__ = ("beside",)

    def __init__(self) -> None:
        super().__init__()
        self.beside = [1]


class Copied(nn.Module):
    def __init__(self, made: str = "by hand") -> None:
        super().__init__()
        self.made = made

    def __deepcopy__(self, memo: dict[int, Any]) -> Copied:
        return Copied("by a copy")


class Pickled(nn.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = size

    def __reduce__(self) -> Any:
        return Pickled, (self.size + 1,)


class Forgetting(nn.Module):
    """Keeps less, and makes up for it."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.inner = nn.Linear(2, 2)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "lock": None, "again": True})


class Made(nn.Module):
    """Takes arguments to be made."""

    def __new__(cls, *size: int) -> Made:
        made = super().__new__(cls)
        made.size = size or (0,)
        return made

    def __init__(self, *size: int) -> None:
        super().__init__()

    def __getnewargs__(self) -> tuple[int, ...]:
        return 7, 7


class Tangled(nn.Module):
    """Holds itself, its parts twice, and containers within containers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.again = self.inner
        self.register_buffer("table", torch.arange(3.0))
        self.view = self.__dict__["_buffers"]["table"]
        self.parts: list[Any] = [self, self.inner, {"inner": self.inner, "table": self.view}]
        self.by_module = {self.inner: {1, 2}, "empty": set(), "tuple": (1, [2])}
        self.ordered = OrderedDict(a=[1])
        self.named = OrderedDict()
        self.named.note = "an attribute"  # type: ignore[attr-defined]
        self.empty: dict[str, int] = {}
        self.the_same = self.empty
        self.function, self.kind, self.dtype = torch.relu, nn.Linear, torch.float16
        self.generator = torch.Generator().manual_seed(3)
        self.inner.register_forward_hook(self.hook)

    def hook(self, *_: Any) -> None:
        return None


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "slots": Slotted, "deepcopy": Copied, "reduce": Pickled, "state": Forgetting, "new": lambda: Made(5),
    "tangled": Tangled,
    "parametrized": lambda: weight_norm(nn.Linear(3, 2)),
    "within": lambda: nn.Sequential(Slotted(), nn.ModuleDict({"a": Copied(), "b": Pickled()}), Forgetting()),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 8),
    "scripted": lambda: nn.Sequential(torch.jit.script(nn.Linear(2, 2)), nn.ReLU()),
    "lightning": Classifier,
    "compiled": lambda: nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager")),  # type: ignore[list-item]
    "llama": lambda: FAMILIES["llama"].build("sdpa"),
}  # fmt: skip


PLAIN = (str, int, float, bytes, type(None), type)


def assert_same_objects(one: Any, other: Any, original: Any) -> None:
    """Same types and values; what is one object in one copy, or the original's, is so in the other."""
    pairs: dict[int, int] = {}
    kept: list[Any] = []  # else an object that is made on the way would give its identity to the next
    shared = _objects(original)

    def walk(a: Any, b: Any, path: str) -> None:
        assert type(a) is type(b), path
        if isinstance(a, PLAIN) or (callable(a) and not hasattr(a, "__dict__")):
            assert a == b, path
            return
        assert (id(a) in shared) == (id(b) in shared), f"{path} is shared with the original in one"
        assert pairs.get(id(a), id(b)) == id(b), f"{path} is another object"
        assert pairs.get(id(b), id(a)) == id(a), f"{path} is another object"
        if id(a) in pairs:
            return
        pairs[id(a)], pairs[id(b)] = id(b), id(a)
        kept.extend((a, b))
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), path
        elif isinstance(a, torch.Generator):
            assert torch.equal(a.get_state(), b.get_state()), path
        elif isinstance(a, dict):
            assert [k if isinstance(k, str) else type(k) for k in a] == [
                k if isinstance(k, str) else type(k) for k in b
            ]
            for key, mine, theirs in zip(a, a.values(), b.values(), strict=True):
                walk(mine, theirs, f"{path}[{key!r}]")
            if not all(isinstance(key, str) for key in a):
                walk(list(a), list(b), f"keys of {path}")
        elif isinstance(a, (list, tuple)):
            assert len(a) == len(b), path
            for place, (mine, theirs) in enumerate(zip(a, b, strict=True)):
                walk(mine, theirs, f"{path}[{place}]")
        elif isinstance(a, (set, frozenset)):
            assert a == b, path
        elif hasattr(a, "__self__"):
            assert a.__name__ == b.__name__, path
            walk(a.__self__, b.__self__, f"{path}.__self__")
        if hasattr(a, "__dict__") and not isinstance(a, (torch.Tensor, types.FunctionType)):
            walk(vars(a), vars(b), f"vars({path})")
        for name in getattr(type(a), "__slots__", ()) if isinstance(a, nn.Module) else ():
            walk(getattr(a, name, None), getattr(b, name, None), f"{path}.{name}")

    walk(one, other, "model")


def _objects(root: Any) -> set[int]:
    """Identities of the original's modules, tensors and containers."""
    found: dict[int, Any] = {}
    rest = [root]
    while rest:
        value = rest.pop()
        if id(value) in found or isinstance(value, PLAIN):
            continue
        found[id(value)] = value
        if isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set)):
            rest += value
        elif isinstance(value, nn.Module):
            rest.append(vars(value))
    return {*found}


@pytest.mark.parametrize("name", BUILDERS)
def test_it_is_what_deepcopy_makes(name: str) -> None:
    model = BUILDERS[name]()
    assert_same_objects(copy_tree(model, {}), copy.deepcopy(model), model)


def test_what_the_memo_holds_stands_in_the_copy() -> None:
    model = Tangled()
    weight, part = nn.Parameter(torch.zeros(2, 2)), nn.Linear(2, 2)
    memo: dict[int, Any] = {id(model.inner.weight): weight}
    assert copy_tree(model, memo).inner.weight is weight
    assert memo[id(model.inner)].weight is weight
    assert copy_tree(model, {id(model.inner): part}).again is part


class Fleeting(nn.Module):
    """Has its state in dicts that nobody else holds."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "made": {str(i): {} for i in range(50)}}


def test_what_the_memo_knows_by_identity_lives_as_long_as_the_memo() -> None:
    """Else another object would get its identity, and its copy."""
    memo: dict[int, Any] = {}
    copy_tree(nn.Sequential(Fleeting(), nn.ReLU()), memo)
    later: list[dict[str, int]] = [{} for _ in range(1000)]
    assert not memo.keys() & {id(value) for value in later}


@pytest.mark.parametrize("spoil", ["inner", "empty", "parts"])
def test_the_comparison_can_fail(spoil: str) -> None:
    model = Tangled()
    copied = copy_tree(model, {})
    setattr(copied, spoil, copy.deepcopy(getattr(copied, spoil)) if spoil != "parts" else model.parts)
    with pytest.raises(AssertionError):
        assert_same_objects(copied, copy.deepcopy(model), model)
