"""Which parameters an attention gets its queries, keys and values from, and which take its outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_geo.metrics.spec import ROLES
from lightning_geo.observe.call import AttentionCall, CallKey
from lightning_geo.observe.heads.projection_matching import find_sources
from lightning_geo.observe.heads.projections import (
    Projections,
    Source,
    drop_inner,
    given_sources,
    output_source,
)
from lightning_geo.observe.layers.linear_run import Run

__all__ = ["ProjectionObserver", "ProjectionSearch"]


class ProjectionObserver(Protocol):
    """What may also be told the parameters before and after an attention: finding them costs something."""

    reads_projections: bool

    def projections(self, key: CallKey, projections: Projections) -> None:
        """Where that attention's queries, keys and values came from, and where its outputs went."""


class ProjectionSearch:
    """Looks at the linear modules around each attention, the first time that it is seen with such heads.

    Those before it are known when it runs; the one behind is waited for until its layer ends.

    Args:
        observing: The context in which observers are told.
    """

    def __init__(self, observing: Callable[[], AbstractContextManager[None]]) -> None:
        #: who wants to know; None if nobody does
        self.observer: ProjectionObserver | None = None
        #: attention modules and the roles whose projections could not be found
        self.missing: dict[str, list[str]] = {}
        self._observing = observing
        #: by attention module, whether it is crossed and which part: the sizes of its heads, and what was
        #: found for them
        self._sources: dict[tuple[str, bool, int], tuple[tuple[int, ...], dict[str, Source]]] = {}
        self._awaiting: tuple[CallKey, AttentionCall, list[Run]] | None = None

    def forget(self) -> None:
        """The model's modules are others now."""
        self._sources.clear()

    def start_over(self) -> None:
        """Drop every reference to the model's activations."""
        self._awaiting = None

    def attention(self, key: CallKey, call: AttentionCall, runs: list[Run]) -> None:
        """An attention was computed.

        Args:
            key: Which.
            call: What it was.
            runs: Linear modules that ran before it, in its layer.
        """
        if self.observer is None:
            return
        self.settle()
        if call.parameters is not None:
            self.observer.projections(key, Projections(given_sources(call), runs, call))
            return
        place = key.module, key.cross, key.part
        known, found = self._sources.get(place, (None, {}))
        if known != call.sizes:
            found = find_sources(runs, call)
            self._sources[place] = call.sizes, found
            self._awaiting = key, call, runs
            return
        self.observer.projections(key, Projections(found, runs, call))

    def linear_starts(self, module: nn.Module, x: Any) -> None:
        """A linear module starts: it may be the one that the last attention waits for."""
        if self._awaiting is None or not isinstance(x, Tensor):
            return
        key, call, _ = self._awaiting
        with self._observing():
            source = None if call.output is None else output_source(module, x, call.output)
            if source is not None:
                self._sources[key.module, key.cross, key.part][1]["output"] = source
                self.settle()

    def settle(self) -> None:
        """Whatever was found by now is what there is."""
        if self._awaiting is None or self.observer is None:
            return
        key, call, runs = self._awaiting
        self._awaiting = None
        _, found = self._sources[key.module, key.cross, key.part]
        with self._observing():
            drop_inner(found, cross=key.cross)
            missing = [role for role in ROLES if role not in found]
            if missing:
                self.missing[key.module] = missing
            self.observer.projections(key, Projections(found, runs, call))
