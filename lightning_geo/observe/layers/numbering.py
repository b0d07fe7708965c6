"""The layer and stack of each call, by the paths of modules."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lightning_geo.observe.call import CallKey
from lightning_geo.observe.layers.placement import PlacedCalls, elements_of, place_calls
from lightning_geo.utils._torch import WRAPPERS, unwrapped

__all__ = ["LayerNumbering", "clean_name", "elements_of", "looks_like_attention", "name_of", "number_layers"]

#: Prefix that peft adds to module paths.
_PEFT = "base_model.model."


def clean_name(path: str) -> str:
    """Remove the path components that wrappers add to a module path.

    A run with them and one without must give the same names, or they could not be compared.

    Example:
        >>> clean_name("base_model.model._orig_mod.encoder.layer.0")
        'encoder.layer.0'
    """
    parts = [part for part in path.split(".") if part not in WRAPPERS]
    return ".".join(parts).removeprefix(_PEFT)


def looks_like_attention(module: nn.Module) -> bool:
    """Whether the name of a module's class marks it as attention."""
    return re.search(r"att(entio)?n$", type(module).__name__, re.IGNORECASE) is not None


def name_of(path: str, model: nn.Module, prefix: str = "") -> str:
    """Name a module in messages: by its path, the observed model itself by its class.

    Args:
        path: Path from the observed model; empty for the model itself.
        model: The observed model.
        prefix: Name of the observed model, if there are several.

    Example:
        >>> name_of("", nn.Linear(1, 1)), name_of("layers.0", nn.Linear(1, 1), "text")
        ('Linear', 'text.layers.0')
    """
    joined = ".".join(part for part in (prefix, path) if part)
    return joined or type(unwrapped(model)).__name__


@dataclass(frozen=True)
class LayerNumbering:
    """The stack and layer of every attention call of a model.

    Args:
        layers: ``call -> (stack, layer)``, unique for each call.
        blocks: ``call -> path of the block whose input and output belong to that layer``.
        sizes: ``stack -> number of layers``, those without attention included.
        rows: ``stack -> path of the list item or module behind each layer``, the model itself by its class.
    """

    layers: dict[CallKey, tuple[str, int]]
    blocks: dict[CallKey, str]
    sizes: dict[str, int]
    rows: dict[str, tuple[str, ...]]

    def of_model(self, name: str) -> LayerNumbering:
        """Return the numbering with the model's name before those of its stacks."""
        layers = {key: (f"{name}.{stack}", layer) for key, (stack, layer) in self.layers.items()}
        sizes = {f"{name}.{stack}": size for stack, size in self.sizes.items()}
        rows = {f"{name}.{stack}": paths for stack, paths in self.rows.items()}
        return LayerNumbering(layers, self.blocks, sizes, rows)


def number_layers(calls: Iterable[CallKey], modules: dict[str, nn.Module]) -> LayerNumbering:
    """Number the attention calls of one forward pass.

    A layer is an item of the outermost list: a T5 block, not the sublayers listed in it. An item with
    several self-attentions (or several cross-attentions), some of them in a deeper list, is a stage: each
    item of the deeper list is a layer, and so is each attention module beside that list, in the order of
    ``named_modules``. An item that holds several self-attentions itself is a layer of several stacks, named
    by the modules. Several attentions of one module within one run of its layer are parts: the first is the
    stack's own, the others go to ``<stack>.part2`` and so on, under the same layer number. Layers that all
    run several times are numbered by call order; where only some do, further runs go to ``<stack>.run2``.

    Args:
        calls: The calls in order.
        modules: The observed model's modules by cleaned path, in the order of ``named_modules``.
    """
    groups: dict[str | None, list[CallKey]] = {}
    for call in calls:
        elements = elements_of(call.module, modules)
        groups.setdefault(elements[0].parent if elements else None, []).append(call)
    placed = {parent: place_calls(members, modules, parent) for parent, members in groups.items()}
    names = _stack_names(placed)
    numbering = LayerNumbering({}, {}, {}, {})
    for parent, group in placed.items():
        for call, place in group.places.items():
            stack = names[parent] + place.variant
            numbering.layers[call], numbering.blocks[call] = (stack, place.layer), place.block
            numbering.sizes[stack] = len(group.rows)
            numbering.rows[stack] = tuple(name_of(row, modules[""]) for row in group.rows)
    return numbering


def _stack_names(placed: dict[str | None, PlacedCalls]) -> dict[str | None, str]:
    """Name stacks by the module that holds their list, or by the list where that is ambiguous."""
    holders = {parent: (parent or "").rpartition(".")[0] for parent in placed}
    counts = Counter(holders.values())
    names: dict[str | None, str] = {}
    taken: set[str] = set()
    for parent, group in placed.items():
        holder, own = holders[parent], parent or "model"
        numbered = (f"{own}{number}" for number in itertools.count(2))
        short = [holder] if holder and counts[holder] == 1 else []
        for name in itertools.chain(short, [own], numbered):
            stacks = {name + variant for variant in group.variants}
            if not stacks & taken:
                break
        names[parent] = name
        taken |= stacks
    return names
