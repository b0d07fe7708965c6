"""Which layer of which stack a call belongs to, from the paths of modules alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lightning_geo.taps.call import CallKey

__all__ = ["Layout", "clean_name", "elements_of", "lay_out"]

#: Path components that wrappers add: compile, FSDP, checkpointing, DDP. A run with them and one
#: without must give the same names, or they could not be compared.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
#: What peft puts in front.
_PEFT = "base_model.model."


def clean_name(path: str) -> str:
    """Remove what wrappers add to a module path.

    Example:
        >>> clean_name("base_model.model._orig_mod.encoder.layer.0")
        'encoder.layer.0'
    """
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    return ".".join(parts).removeprefix(_PEFT)


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
class Layout:
    """Where every attention call of a model goes.

    Args:
        layers: ``call -> (stack, layer)``.
        blocks: ``call -> path of the block whose input and output belong to that layer``.
        sizes: ``stack -> number of layers``, those without attention included.
    """

    layers: dict[CallKey, tuple[str, int]]
    blocks: dict[CallKey, str]
    sizes: dict[str, int]


def elements_of(name: str, modules: dict[str, nn.Module]) -> list[Element]:
    """List items that enclose the module ``name``, outermost first."""
    parts = name.split(".")
    found = []
    for depth, part in enumerate(parts):
        parent = ".".join(parts[:depth])
        if part.isdigit() and isinstance(modules.get(parent), (nn.ModuleList, nn.Sequential)):
            found.append(Element(parent, int(part)))
    return found


def lay_out(calls: Iterable[CallKey], modules: dict[str, nn.Module]) -> Layout:
    """Number the attention calls of one forward.

    A layer is an item of the outermost list in which every item has one self-attention and one
    cross-attention at most: a T5 block, not the sublayers listed in it; a Swin block, not a stage.

    Args:
        calls: In the order in which they were made.
        modules: The observed model's modules by cleaned path.
    """
    groups: dict[str, list[CallKey]] = {}
    for call in calls:
        elements = elements_of(call.module, modules)
        groups.setdefault(elements[0].parent if elements else "", []).append(call)
    names = _stack_names(list(groups))
    layers: dict[CallKey, tuple[str, int]] = {}
    blocks: dict[CallKey, str] = {}
    sizes: dict[str, int] = {}
    for parent, members in groups.items():
        numbered, count = _number(members, modules)
        for call, (index, block, variant) in numbered.items():
            stack = names[parent] + variant
            layers[call], blocks[call] = (stack, index), block
            sizes[stack] = max(sizes.get(stack, 0), count)
    return Layout(layers, blocks, sizes)


def _number(
    calls: list[CallKey], modules: dict[str, nn.Module]
) -> tuple[dict[CallKey, tuple[int, str, str]], int]:
    """Number the calls below one outermost list: ``call -> (layer, block, stack suffix)``."""
    order = {name: i for i, name in enumerate(modules)}
    elements = {call: elements_of(call.module, modules) for call in calls}
    if not all(elements.values()):  # no list above: every module is a layer of its own
        unique = sorted({call.module for call in calls}, key=order.__getitem__)
        return {c: (unique.index(c.module), c.module, ".cross" * c.cross) for c in calls}, len(unique)

    depth = 0
    while _crowded(calls, elements, depth) and all(len(e) > depth + 1 for e in elements.values()):
        depth += 1
    parents = sorted({e[depth].parent for e in elements.values()}, key=order.__getitem__)
    offsets, count = {}, 0
    for parent in parents:
        offsets[parent] = count
        count += len(modules[parent])  # type: ignore[arg-type]

    crowded = _crowded(calls, elements, depth)
    repeated = any(call.repeat for call in calls)
    numbered, seen = {}, dict[str, int]()
    for call in calls:
        element = elements[call][depth]
        variant = ".cross" * call.cross
        if not variant and crowded:  # two kinds of self-attention in one layer: told apart by name
            variant = "." + call.module.removeprefix(element.name + ".").split(".")[0]
        index = offsets[element.parent] + element.index
        if repeated:
            index = seen[variant] = seen.get(variant, -1) + 1
        numbered[call] = (index, element.name, variant)
    return numbered, max(seen.values()) + 1 if repeated else count


def _crowded(calls: list[CallKey], elements: dict[CallKey, list[Element]], depth: int) -> bool:
    """Whether one item at this depth holds two different self- (or cross-) attention modules."""
    owners: dict[tuple[str, bool], str] = {}
    return any(owners.setdefault((elements[c][depth].name, c.cross), c.module) != c.module for c in calls)


def _stack_names(parents: list[str]) -> dict[str, str]:
    """Name stacks by what holds their list; by the list itself where that is not unique."""
    holders = [parent.rpartition(".")[0] for parent in parents]
    return {
        parent: (holder if holder and holders.count(holder) == 1 else parent) or "model"
        for parent, holder in zip(parents, holders, strict=True)
    }
