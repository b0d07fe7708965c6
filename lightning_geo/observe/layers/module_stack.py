"""The modules of an observed model, and the stack of running ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lightning_geo.observe.call import AttentionCall, CallKey
from lightning_geo.observe.layers.frame import Frame
from lightning_geo.observe.layers.linear_run import is_linear
from lightning_geo.observe.layers.numbering import clean_name, elements_of
from lightning_geo.observe.replay.torchscript import scripted_attention

__all__ = ["ModuleStack", "ModuleTree", "has_forward"]


def has_forward(module: nn.Module) -> bool:
    """Whether a module can be called: lists and dictionaries of modules cannot.

    A ``forward`` set on the instance counts as one of the class does.
    """
    return getattr(module.forward, "__func__", module.forward) is not nn.Module.forward


class ModuleTree:
    """The modules of a model by cleaned path.

    Args:
        model: The observed model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._find(model)
        #: the modules of the model itself by path, also in the tree of a copy of it
        self.own_modules = self.modules
        #: paths of TorchScript modules that compute attention
        self.scripted = scripted_attention(self.modules)
        self.linear = {name for name, module in self.modules.items() if is_linear(module)}
        elements = {name: elements_of(name, self.modules) for name in self.modules}
        #: modules inside of lists
        self.listed = {name for name, within in elements.items() if within}
        #: innermost list items
        self.items = {within[-1].name for within in elements.values() if within}
        #: modules that own a list of layers: when one starts, the runs of its layers are counted anew
        self.owners = {within[0].parent.rpartition(".")[0] for within in elements.values() if within} | {""}
        # Items that hold a list themselves: an attention outside that list is a layer of its own.
        stages = {e.name for within in elements.values() for e in within[:-1]}
        innermost = {name: within[-1].name for name, within in elements.items() if within}
        #: modules in a stage, beside its list of layers
        self.beside = {name for name, item in innermost.items() if item in stages and name != item}
        self._innermost = innermost
        self._find_parameters()

    def _find(self, model: nn.Module) -> None:
        self._known = [id(module) for module in model.modules()]
        self.modules = {clean_name(name): module for name, module in model.named_modules()}
        self.names = {id(module): name for name, module in self.modules.items()}

    def _find_parameters(self) -> None:
        #: parameter -> the innermost list item that it belongs to
        self.item_of = {
            id(parameter): self._innermost[name]
            for name, module in self.modules.items()
            if name in self._innermost
            for parameter in module.parameters(recurse=False)
        }

    def of(self, twin: nn.Module) -> ModuleTree:
        """Return the same tree over the modules of a copy of the model."""
        tree = copy.copy(self)
        tree._find(twin)
        tree._find_parameters()
        return tree

    def is_of(self, model: nn.Module) -> bool:
        """Whether the model still has the same modules: pruning heads replaces some."""
        return self._known == [id(module) for module in model.modules()]

    def is_alone(self, name: str) -> bool:
        """Whether an attention module of that path is a layer by itself rather than a part of a list item."""
        return name in self.beside or name not in self.listed


class ModuleStack:
    """The running modules, outermost first, and how often each layer ran.

    Args:
        tree: The model's modules.
    """

    def __init__(self, tree: ModuleTree) -> None:
        self.tree = tree
        self.frames: list[Frame] = []
        #: attention module -> its layer's run, how often that ran before, and its attentions in this run
        self._runs: dict[str, tuple[Frame, int, int]] = {}

    def clear(self) -> None:
        """Forget the running modules and the runs of layers."""
        self.frames.clear()
        self._runs.clear()

    def push(self, frame: Frame) -> None:
        """Add a module that starts; if it owns layers, count their runs anew."""
        if frame.name in self.tree.owners and not frame.implied:
            prefix = f"{frame.name}." if frame.name else ""
            self._runs = {k: run for k, run in self._runs.items() if not k.startswith(prefix)}
        self.frames.append(frame)

    def runs(self, module: nn.Module) -> bool:
        """Whether a module is running."""
        return any(frame.module is module for frame in self.frames)

    def ends_before(self, name: str) -> bool:
        """Whether the innermost module has ended if ``name`` starts: implied modules run no end hook."""
        return self.frames[-1].implied and not name.startswith(f"{self.frames[-1].name}.")

    def implied_by(self, name: str) -> Iterator[Frame]:
        """Yield modules around ``name`` that run without a call: ``layer.forward(x)`` skips hooks."""
        around = self.frames[-1].name
        if not name.startswith(f"{around}." if around else ""):
            return  # the module lies elsewhere in the tree, and is shared with a running one
        parts = name.split(".")
        for depth in range(around.count(".") + 2 if around else 1, len(parts)):
            path = ".".join(parts[:depth])
            module = self.tree.modules.get(path)
            if module is not None and has_forward(module):
                yield Frame(path, module, implied=True)

    def uses(self, argument: Any) -> str | None:
        """Return the layer of an argument that is one of its parameters, if that layer is not running."""
        item = self.tree.item_of.get(id(argument))
        return None if item is None or any(frame.name == item for frame in self.frames) else item

    def inside(self) -> list[Frame]:
        """Return the running modules from the innermost list item inwards."""
        for index in range(len(self.frames) - 1, -1, -1):
            if self.frames[index].name in self.tree.items:
                return self.frames[index:]
        return self.frames

    def outwards(self) -> list[Frame]:
        """Return the layer's running modules from outside in, then those around it from inside out."""
        inside = self.inside()
        return [*inside, *reversed(self.frames[: len(self.frames) - len(inside)])]

    def key(self, module: str, *, cross: bool, more: bool = False) -> CallKey:
        """Number a call by the runs of its layer, and within a run by its module's attentions.

        Args:
            module: Path of the attention module.
            cross: Whether it is cross-attention.
            more: Whether it holds further sequences of the previous call.
        """
        run = next((f for f in reversed(self.frames) if f.name in self.tree.items), None)
        run = run or next((f for f in self.frames if f.name == module), self.frames[0])
        before, repeat, part = self._runs.get(module, (None, -1, 0))
        if before is not run:
            repeat, part = repeat + 1, 0
        elif not more:
            part += 1
        self._runs[module] = run, repeat, part
        return CallKey(module, repeat, cross, part)

    def note(self, key: CallKey, call: AttentionCall) -> None:
        """Note an attention call, and its tokens as those of the modules around it."""
        innermost = self.frames[-1]
        innermost.emitted = innermost.emitted or key  # the module's output counts for the first part
        sequence_first = getattr(innermost.module, "batch_first", True) is False
        for frame in self.frames:
            if key not in frame.keys:
                frame.keys.append(key)
            if not call.cross or frame.query_mask is None:
                frame.query_mask = call.query_mask
            if not call.cross or frame.documents is None:
                frame.documents = call.documents
            frame.sequence_first = sequence_first
            if call.slice.count > 1:
                frame.slice_shape = call.lengths[1], call.width

    def takes_input(self, name: str) -> bool:
        """Whether a module's input may be a layer's input."""
        return name in self.tree.items or self.tree.is_alone(name)

    def is_block(self, frame: Frame) -> bool:
        """Whether a module that ends is the block of a layer."""
        return frame.name in self.tree.items or (frame.emitted is not None and self.tree.is_alone(frame.name))

    def records_linears(self) -> bool:
        """Whether a linear module that ended may compute queries, keys or values."""
        # Linear modules outside of layers, such as the vocabulary's, are large: their outputs are not kept.
        return not self.tree.items or any(frame.name in self.tree.items for frame in self.frames)

    def attended_with(self, query: Tensor | None, key: Tensor | None) -> bool:
        """Whether the innermost module's last attention had the same queries and keys; remembers these."""
        frame, last = self.frames[-1], self.frames[-1].attended
        frame.attended = query, key
        return query is not None and last is not None and last[0] is query and last[1] is key
