"""The items of a model's lists that are layers, and the layer, stack and part of each attention call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_geo.observe.call import CallKey

__all__ = ["Element", "Place", "PlacedCalls", "elements_of", "place_calls"]

_Modules = dict[str, nn.Module]


@dataclass(frozen=True)
class Element:
    """One item of an ``nn.ModuleList`` or ``nn.Sequential``."""

    parent: str
    index: int

    @property
    def name(self) -> str:
        """Path of the item."""
        return f"{self.parent}.{self.index}".removeprefix(".")


@dataclass(frozen=True)
class Place:
    """Place of one attention call within the layers of one list.

    Args:
        layer: Number of the layer.
        block: Path of the module whose input and output are the layer's.
        variant: Suffix of the stack's name, such as ``.cross`` or ``.part2``; usually empty.
    """

    layer: int
    block: str
    variant: str


@dataclass(frozen=True)
class PlacedCalls:
    """The attention calls below one outermost list.

    Args:
        places: Place of each call.
        rows: Path of the list item or module behind each layer.
    """

    places: dict[CallKey, Place]
    rows: tuple[str, ...]

    @property
    def variants(self) -> list[str]:
        """All variants, each once."""
        return list(dict.fromkeys(place.variant for place in self.places.values()))


def elements_of(name: str, modules: _Modules) -> list[Element]:
    """Return the list items that contain the module ``name``, outermost first."""
    parts = name.split(".")
    elements = []
    for depth, part in enumerate(parts):
        parent = ".".join(parts[:depth])
        if part.isdigit() and isinstance(modules.get(parent), (nn.ModuleList, nn.Sequential)):
            elements.append(Element(parent, int(part)))
    return elements


def place_calls(calls: Sequence[CallKey], modules: _Modules, parent: str | None) -> PlacedCalls:
    """Number the attention calls below one outermost list.

    Args:
        calls: The calls in order.
        modules: The model's modules by path, in the order of ``named_modules``.
        parent: Path of the list; ``None`` for modules that are in no list, each a layer of its own.
    """
    order = {name: i for i, name in enumerate(modules)}
    attention = sorted({call.module for call in calls}, key=order.__getitem__)
    rows = attention if parent is None else _Rows(calls, attention, modules).of_list(parent)
    row_of = {call: _row_of(call.module, set(rows), modules) for call in calls}
    names = _names(row_of)
    runs = list(dict.fromkeys((row_of[call], call.repeat) for call in calls))
    repeats = {row: sorted(n for r, n in runs if r == row) for row in row_of.values()}
    by_order = min(map(len, repeats.values())) > 1  # ALBERT runs one layer many times
    places: dict[CallKey, Place] = {}
    taken: set[tuple[int, str]] = set()
    for call, row in row_of.items():
        run = 0 if by_order else repeats[row].index(call.repeat)
        layer = runs.index((row, call.repeat)) if by_order else rows.index(row)
        variant = ".cross" * call.cross + names[call]
        variant += f".run{run + 1}" * (run > 0) + f".part{call.part + 1}" * (call.part > 0)
        while (layer, variant) in taken:  # a module has the name `cross` or `part2` of its own
            variant += ".other"
        taken.add((layer, variant))
        places[call] = Place(layer, row, variant)
    return PlacedCalls(places, tuple(row for row, _ in runs) if by_order else tuple(rows))


def _row_of(module: str, rows: set[str], modules: _Modules) -> str:
    """Return the row of a module: the module itself, or the innermost list item around it that is a row."""
    if module in rows:
        return module
    return next(e.name for e in reversed(elements_of(module, modules)) if e.name in rows)


def _names(row_of: dict[CallKey, str]) -> dict[CallKey, str]:
    """Return suffixes that distinguish several attention modules of one layer; empty for a single one."""
    names = dict.fromkeys(row_of, "")
    for cross in (False, True):
        paths = {
            call: call.module.removeprefix(row).removeprefix("." if row else "").split(".")
            for call, row in row_of.items() if call.cross == cross
        }  # fmt: skip
        modules = {call.module: row_of[call] for call in paths}
        if len(set(modules.values())) == len(modules):
            continue
        # Take the shortest prefixes that differ: `attention.time` if `attention` names two modules.
        for length in range(1, 1 + max(map(len, paths.values()))):
            short = {call: ".".join(path[:length]) for call, path in paths.items()}
            owners = {(row_of[call], name): call.module for call, name in short.items()}
            if all(owners[row_of[call], name] == call.module for call, name in short.items()):
                break
        names.update({call: f".{name}" if name else "" for call, name in short.items()})
    return names


class _Rows:
    """Finds the layers below a list.

    Args:
        calls: All attention calls below it.
        attention: The modules that compute them, in the order of ``named_modules``.
        modules: The model's modules by path.
    """

    def __init__(self, calls: Iterable[CallKey], attention: list[str], modules: _Modules) -> None:
        self._kinds = {(call.module, call.cross) for call in calls}
        self._attention = attention
        self._modules = modules

    def of_list(self, parent: str) -> list[str]:
        """Return the paths of a list's layers, in order."""
        names = (name for name, _ in self._modules[parent].named_children())
        items = [Element(parent, int(name)).name for name in names if name.isdigit()]
        inside = {item: [m for m in self._attention if _within(m, item)] for item in items}
        stages = {item for item in items if self._is_stage(item, inside[item])}
        rows: list[str] = []
        for item in items:
            # If other items are stages, an item with a single attention in a deeper list is one too.
            if item in stages or (stages and len(inside[item]) == 1 and self._list_in(item, inside[item][0])):
                rows += self._of_stage(item, inside[item])
            elif inside[item] or not stages:
                rows.append(item)
        return rows

    def _of_stage(self, item: str, attention: list[str]) -> list[str]:
        rows: list[str] = []
        lists = set()
        for module in attention:
            deeper = self._list_in(item, module)
            if deeper is None:
                rows.append(module)
            elif deeper not in lists:
                lists.add(deeper)
                rows += self.of_list(deeper)
        return rows

    def _is_stage(self, item: str, attention: list[str]) -> bool:
        """Whether an item has several self- or cross-attentions, some of them in a list within it."""
        counts = [sum((module, cross) in self._kinds for module in attention) for cross in (False, True)]
        return max(counts) > 1 and any(self._list_in(item, module) is not None for module in attention)

    def _list_in(self, item: str, module: str) -> str | None:
        """Return the outermost list within an item that contains the module."""
        elements = elements_of(module, self._modules)
        inside = (e.parent for e in elements if e.name != item and _within(e.name, item))
        return next(inside, None)


def _within(module: str, item: str) -> bool:
    return module == item or module.startswith(f"{item}.")
