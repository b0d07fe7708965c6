"""Buffers and attributes that a training step was entered with, for a replay of the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.utils._lightning import TRAINER
from lightning_geo.utils._torch import buffers_of

__all__ = ["TREE", "Entered"]

#: What a module consists of, apart from its attributes.
TREE = (*vars(nn.Module()), TRAINER)


class Entered:
    """The buffers, attributes and torch generators of a model's modules as they are now.

    Tensors are cloned. Functions are left alone, because observation replaces them. What lies inside other
    objects is not kept, nor are parameters: a copy of them all would be as large as the model.

    Args:
        model: The model; its TorchScript modules are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if not is_scripted(module)]
        #: by the identity of a tensor, which it keeps alive: tensors that modules share stay shared
        self._clones: dict[int, tuple[Tensor, Tensor]] = {}
        self._content = [(self._kept(buffers_of(m)), self._kept(vars(m))) for m in self._modules]
        values = [value for _, attributes in self._content for value in attributes.values()]
        self._generators = [(x, x.get_state()) for x in values if isinstance(x, torch.Generator)]

    def _kept(self, place: dict[str, Any]) -> dict[str, Any]:
        content = {name: place[name] for name in self._kept_names(place)}
        for value in content.values():
            if isinstance(value, Tensor) and not value.is_inference():
                self._clones.setdefault(id(value), (value, value.detach().clone()))
        return content

    @staticmethod
    def _kept_names(place: dict[str, Any]) -> set[str]:
        return {name for name, value in place.items() if name not in TREE and not callable(value)}

    def put_back(self) -> None:
        """Give the modules this state, in new tensors: those that training holds stay as they are.

        The caller restores the state that it replaces.
        """
        fresh = {number: clone.clone() for number, (_, clone) in self._clones.items()}
        for module, contents in zip(self._modules, self._content, strict=True):
            for place, content in zip((buffers_of(module), vars(module)), contents, strict=True):
                for name in self._kept_names(place) - content.keys():
                    del place[name]
                place.update({name: fresh.get(id(value), value) for name, value in content.items()})
        for generator, state in self._generators:
            generator.set_state(state)
