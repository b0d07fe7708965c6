"""Saves and restores the inside of a model's attributes: containers, objects, tensors and generators."""

from __future__ import annotations

import collections
import contextlib
import functools
import random
import types
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_geo.observe.replay.call_state import CONSTANT
from lightning_geo.utils._lightning import TRAINER
from lightning_geo.utils._torch import version_of

__all__ = ["TREE", "Contents"]

#: Attributes that every module has, and its Trainer; all others are the user's.
TREE = (*vars(nn.Module()), TRAINER)

#: Values that are not looked into; compared by their exact type, because there may be millions of them.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, *weakref.ProxyTypes})
#: Packages whose objects belong to training, hold all weights, or are shared with other threads.
_TRAINING = frozenset({
    "torch", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_geo", "accelerate", "deepspeed",
    "logging", "threading", "multiprocessing", "concurrent", "asyncio", "queue", "weakref",
})  # fmt: skip
#: Values that no forward pass changes, or that hold data.
_LEFT_ALONE = (*(kind for kind in CONSTANT if kind is not nn.Module), types.ModuleType, Dataset, DataLoader)


class Contents:
    """The contents of everything that some values lead to, as they are now.

    Dictionaries, lists, deques, sets and the attributes of objects are restored item by item, tensors and
    arrays by their values, random generators by their states. Parameters keep their identity alone: a copy of
    them all would be as large as the model. State that Python cannot put back stays as a forward pass leaves
    it: iterators, files, the inside of C extensions.

    Args:
        values: The values to look into.
        known: Modules whose own attributes the caller restores.
    """

    def __init__(self, values: Iterable[Any], known: Iterable[nn.Module] = ()) -> None:
        #: containers, each with its items
        self._places: list[tuple[Any, list[Any]]] = []
        #: objects with slots, each with the values that these hold
        self._slots: list[tuple[Any, dict[str, Any]]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._generators: list[tuple[Any, Any]] = []
        #: by identity, which an entry keeps alive: a tensor, its values and its version
        self.tensors: dict[int, tuple[Tensor, Tensor, int]] = {}
        seen, waiting = set(map(id, known)), list(values)
        while waiting:
            value = waiting.pop()
            if type(value) in _PLAIN or id(value) in seen:
                continue
            seen.add(id(value))
            with contextlib.suppress(Exception):  # an object that cannot be inspected stays as it is
                waiting += self._look_into(value)

    def _look_into(self, value: Any) -> Iterable[Any]:
        """Keep a value's contents, and return them."""
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter) and not value.is_inference() and not _is_freed(value):
                self.tensors[id(value)] = value, value.detach().clone(), version_of(value)
            return ()
        if isinstance(value, types.MethodType):
            return (value.__self__,)
        if isinstance(value, functools.partial):
            return (value.func, value.args, value.keywords)
        if isinstance(value, _LEFT_ALONE):
            return ()
        if isinstance(value, (tuple, frozenset)):
            return value
        if (state := _state_of(value)) is not None:
            self._generators.append((value, state))
            return ()
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._arrays.append((value, value.copy()))
            return ()
        if type(value).__module__.partition(".")[0] in _TRAINING and not isinstance(value, nn.Module):
            return ()
        return [*self._items(value), *self._attributes(value)]

    def _items(self, value: Any) -> Iterable[Any]:
        items = _items_of(value)
        if items is None:
            return ()
        self._places.append((value, items))
        return [item for _, item in items] if isinstance(value, dict) else items

    def _attributes(self, value: Any) -> Iterable[Any]:
        attributes = getattr(value, "__dict__", None)
        slots = _slots_of(value)
        if slots:
            self._slots.append((value, slots))
        return [*slots.values(), *([attributes] if type(attributes) is dict else [])]

    def restore(self) -> None:
        """Put back what has changed."""
        for place, items in self._places:
            _write(place, items)
        for value, slots in self._slots:
            _write_slots(value, slots)
        for array, content in self._arrays:
            _write_array(array, content)
        for generator, state in self._generators:
            _set_state(generator, state)
        with torch.no_grad():
            for tensor, values, version in self.tensors.values():
                if version_of(tensor) != version:
                    tensor.copy_(values)

    def put_back(self, fresh: Mapping[int, Tensor]) -> None:
        """Write these contents with other tensors in place of their own.

        Args:
            fresh: By the identity of a tensor, the one to put in its place.
        """
        for place, items in self._places:
            _write(place, _with(items, fresh))
        for value, slots in self._slots:
            _write_slots(value, {name: fresh.get(id(held), held) for name, held in slots.items()})
        for array, content in self._arrays:
            _write_array(array, content)
        for generator, state in self._generators:
            _set_state(generator, state)


def _is_freed(tensor: Tensor) -> bool:
    """Whether a tensor's memory was freed: FSDP1 leaves such views of gathered parameters in modules.

    To read one ends the process.
    """
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


# -- containers


def _items_of(place: Any) -> list[Any] | None:
    """Return the items of a container, a dictionary's as pairs; None if it is no container."""
    if isinstance(place, dict):
        return list(_base_of(place).items(place))
    if isinstance(place, (list, collections.deque, set)):
        return list(place)
    return None


def _base_of(place: dict[Any, Any]) -> Any:
    """Return the built-in class of a dictionary; an ordered one has an order of its own."""
    return collections.OrderedDict if isinstance(place, collections.OrderedDict) else dict


def _write(place: Any, items: list[Any]) -> None:
    """Give a container these items, in this order, without the methods of a user's class."""
    now = _items_of(place)
    assert now is not None
    if isinstance(place, dict):
        if len(now) == len(items) and all(
            a is b and x is y for (a, x), (b, y) in zip(now, items, strict=True)
        ):
            return
        kind = _base_of(place)
        kind.clear(place)
        for name, item in items:
            kind.__setitem__(place, name, item)
        return
    if len(now) == len(items) and all(x is y for x, y in zip(now, items, strict=True)):
        return
    if isinstance(place, list):
        list.__setitem__(place, slice(None), items)
    elif isinstance(place, collections.deque):
        collections.deque.clear(place)
        collections.deque.extend(place, items)
    else:
        set.clear(place)
        set.update(place, items)


def _with(items: list[Any], fresh: Mapping[int, Tensor]) -> list[Any]:
    """Replace tensors among items, pairs and plain tuples."""
    replaced = []
    for item in items:
        if type(item) is tuple:
            replaced.append(tuple(_with(list(item), fresh)))
        else:
            replaced.append(fresh.get(id(item), item))
    return replaced


def _slots_of(value: Any) -> dict[str, Any]:
    """Return the contents of the slots of a user's class."""
    held = {}
    for kind in type(value).__mro__:
        for name, slot in vars(kind).items() if "__slots__" in vars(kind) else ():
            if isinstance(slot, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # an empty slot
                    held[name] = slot.__get__(value)
    return held


def _write_slots(value: Any, slots: dict[str, Any]) -> None:
    now = _slots_of(value)
    for name in now.keys() - slots.keys():
        object.__delattr__(value, name)
    for name, held in slots.items():
        if name not in now or now[name] is not held:
            object.__setattr__(value, name, held)


def _write_array(array: np.ndarray[Any, Any], content: np.ndarray[Any, Any]) -> None:
    if array.shape == content.shape and array.tobytes() != content.tobytes():
        np.copyto(array, content)


# -- random generators


def _state_of(value: Any) -> Any:
    """Return the state of a random generator; None if it is no generator."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    return value.getstate() if isinstance(value, random.Random) else None


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.setstate(state)
