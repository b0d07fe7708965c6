"""Compares what two taps show of the same run of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.call import AttentionCall, BlockCall, CallKey
from lightning_geo.observe.heads.projections import Projections
from lightning_geo.utils._torch import identity_of
from lightning_geo.utils.device_copy import ToHost

__all__ = ["EventComparison", "OneOfTwo"]


class EventComparison:
    """Whether two taps show the same events: tensors bit for bit, and everything else about them.

    Args:
        projections: Whether they show projections.
    """

    def __init__(self, projections: bool = True) -> None:
        self.projections = projections
        #: whether some were different already
        self.differs = False
        self._waiting: dict[tuple[Any, ...], list[tuple[object, Any]]] = {}
        self._equal: list[Tensor] = []
        self._copies: list[ToHost] = []

    def take(self, tap: object, about: tuple[Any, ...], event: Any) -> None:
        """Compare an event with the other tap's, or keep it until that comes."""
        waiting = self._waiting.setdefault(about, [])
        if waiting and waiting[0][0] is not tap:
            try:
                self.differs |= not self._same(waiting.pop(0)[1], event)
            except Exception:  # then nothing is known, and the model's run is not to end for it
                self.differs = True
        elif not self.differs:
            waiting.append((tap, event))

    def settle(self) -> None:
        """End a run of the model: what only one tap has shown is different."""
        self.differs |= any(self._waiting.values())
        self._waiting.clear()
        self._copies += [ToHost(equal) for equal in self._equal]
        self._equal.clear()

    @property
    def holds(self) -> bool | None:
        """Whether all was the same; None while the device has not answered."""
        if self.differs or not all(copy.arrived for copy in self._copies):
            return False if self.differs else None
        return all(bool(copy.value) for copy in self._copies)

    def _same(self, a: Any, b: Any) -> bool:
        if a is b:
            return True
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
                return False
            if identity_of(a) != identity_of(b):
                self._equal.append(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())
            return True
        if type(a) is not type(b):
            return False
        if is_dataclass(a):  # what is private is made on demand
            names = [field.name for field in fields(a) if not field.name.startswith("_")]
            return all(self._same(getattr(a, name), getattr(b, name)) for name in names)
        if isinstance(a, Mapping):
            return list(a) == list(b) and all(self._same(a[key], b[key]) for key in a)
        if isinstance(a, (tuple, list)):
            return len(a) == len(b) and all(map(self._same, a, b))
        return bool(a == b)


class OneOfTwo:
    """The observer of one of the two taps.

    Args:
        comparison: Where its events go.
        covers: Whether to compare events of a module.
        observer: Receives all events too; None for nobody.
        like: The observer, or that of the other tap.
    """

    def __init__(self, comparison: EventComparison, covers: Any, observer: Any, like: Any) -> None:
        self._comparison, self._covers, self._observer = comparison, covers, observer
        self.reads_projections: bool = like.reads_projections
        self.reads_padding: bool = like.reads_padding
        self.measures = like.measures

    def _take(self, path: str, what: str, key: object, event: Any) -> None:
        if self._covers(path):
            self._comparison.take(self, (what, key), event)

    def attention(self, key: CallKey, call: AttentionCall) -> Any:
        """Receive one attention call."""
        self._take(key.module, "attention", key, call)
        return None if self._observer is None else self._observer.attention(key, call)

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None:
        """Receive the hidden states that an attention module returned."""
        self._take(key.module, "output", key, (output, mask))
        if self._observer is not None:
            self._observer.attention_module(key, output, mask)

    def block(self, block: BlockCall) -> None:
        """Receive one run of a layer."""
        self._take(block.name, "block", block.name, block)
        if self._observer is not None:
            self._observer.block(block)

    def projections(self, key: CallKey, projections: Projections) -> None:
        """Receive the projections of one attention call."""
        self._take(key.module, "projections", key, projections)
        if self._observer is not None:
            self._observer.projections(key, projections)
