"""Buffers and attributes that a training step was entered with, for a replay of the model itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_geo.observe.replay.contents import TREE, Contents
from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.utils._torch import buffers_of

__all__ = ["Entered"]


class Entered:
    """The buffers and attributes of a model's modules, and what these lead to, as they are now.

    Tensors are cloned. Functions are left alone, because observation replaces them. Parameters are not kept:
    a copy of them all would be as large as the model.

    Args:
        model: The model; its TorchScript modules are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if not is_scripted(module)]
        self._content = [(_kept(buffers_of(m)), _kept(vars(m))) for m in self._modules]
        places = [place for module in self._modules for place in (buffers_of(module), vars(module))]
        values = [value for place in places for name, value in place.items() if name not in TREE]
        self._inside = Contents(values, known=model.modules())

    def put_back(self) -> None:
        """Give the modules this state, in new tensors: those that training holds stay as they are.

        The caller restores the state that it replaces.
        """
        # tensors that modules share stay shared
        fresh: dict[int, Tensor] = {number: c.clone() for number, (_, c, _) in self._inside.tensors.items()}
        for module, contents in zip(self._modules, self._content, strict=True):
            for place, content in zip((buffers_of(module), vars(module)), contents, strict=True):
                for name in _kept(place).keys() - content.keys():
                    del place[name]
                place.update({name: fresh.get(id(value), value) for name, value in content.items()})
        self._inside.put_back(fresh)


def _kept(place: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in place.items() if name not in TREE and not callable(value)}
