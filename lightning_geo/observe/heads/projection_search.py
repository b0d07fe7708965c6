"""Search for the parameters that compute an attention's queries, keys and values, and read its outputs."""

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
from lightning_geo.observe.layers.linear_run import LinearRun

__all__ = ["ProjectionObserver", "ProjectionSearch"]


class ProjectionObserver(Protocol):
    """An observer that may also receive an attention's projections, whose search takes time."""

    reads_projections: bool

    def measures(self, key: CallKey) -> bool:
        """Return whether it needs those of a call."""

    def projections(self, key: CallKey, projections: Projections) -> None:
        """Receive the projections of one attention call."""


class ProjectionSearch:
    """Searches the linear modules around each attention, once for each number and size of heads.

    Modules before the attention have run already; the output projection may follow until the layer ends.

    Args:
        observing: The context in which the observer is called.
    """

    def __init__(self, observing: Callable[[], AbstractContextManager[None]]) -> None:
        #: receives projections; None if no observer needs them
        self.observer: ProjectionObserver | None = None
        #: attention module -> roles without a known projection
        self.missing: dict[str, list[str]] = {}
        self._observing = observing
        #: (attention module, cross-attention or not, part) -> (sizes of its heads, source of each role)
        self._sources: dict[tuple[str, bool, int], tuple[tuple[int, ...], dict[str, Source]]] = {}
        self._awaiting: tuple[CallKey, AttentionCall, list[LinearRun]] | None = None

    def forget(self) -> None:
        """Forget all projections, after the model's modules changed."""
        self._sources.clear()

    def start_over(self) -> None:
        """Drop every reference to the model's activations."""
        self._awaiting = None

    def attention(self, key: CallKey, call: AttentionCall, runs: list[LinearRun]) -> None:
        """Take one attention call, and search its projections unless they are known.

        Args:
            key: The call's key.
            call: The call.
            runs: Runs of linear modules before it in its layer.
        """
        if self.observer is None:
            return
        self.settle()
        if not self.observer.measures(key):
            return
        if call.parameters is not None:
            self.observer.projections(key, Projections(given_sources(call), runs, call))
            return
        place = key.module, key.cross, key.part
        known, sources = self._sources.get(place, (None, {}))
        if known != call.sizes:
            sources = find_sources(runs, call)
            self._sources[place] = call.sizes, sources
            self._awaiting = key, call, runs
            return
        self.observer.projections(key, Projections(sources, runs, call))

    def linear_starts(self, module: nn.Module, x: Any) -> None:
        """Check whether a linear module that starts is the last attention's output projection."""
        if self._awaiting is None or not isinstance(x, Tensor):
            return
        key, call, _ = self._awaiting
        with self._observing():
            source = None if call.output is None else output_source(module, x, call.output)
            if source is not None:
                self._sources[key.module, key.cross, key.part][1]["output"] = source
                self.settle()

    def settle(self) -> None:
        """End the search for the last attention, and show its projections."""
        if self._awaiting is None or self.observer is None:
            return
        key, call, runs = self._awaiting
        self._awaiting = None
        _, sources = self._sources[key.module, key.cross, key.part]
        with self._observing():
            drop_inner(sources, cross=key.cross)
            missing = [role for role in ROLES if role not in sources]
            if missing:
                self.missing[key.module] = missing
            self.observer.projections(key, Projections(sources, runs, call))
