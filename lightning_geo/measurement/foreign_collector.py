"""A collector of others: with sums of its own, and errors that cost its own metrics alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.metric_values import without_trace
from lightning_geo.measurement.sums import LayerSums, settle_values
from lightning_geo.metrics.selection import spec_of
from lightning_geo.observe import AttentionCall, BlockCall, CallKey, Projections
from lightning_geo.utils._torch import version_of
from lightning_geo.utils.errors import ArgumentError, let_go

__all__ = ["ForeignCollector"]

_BlockKey = tuple[str, CallKey]


class ForeignCollector:
    """Passes events to a collector of others, until it fails.

    Args:
        kind: Its class.
        metrics: Stored names of the metrics to measure.
    """

    def __init__(self, kind: type[Collector], metrics: tuple[str, ...]) -> None:
        self._metrics = metrics
        self._kind = kind
        self.name = f"{kind.__module__}.{kind.__qualname__}"
        self.layers: dict[CallKey, LayerSums] = {}
        self.blocks: dict[_BlockKey, LayerSums] = {}
        #: first error of each metric, by name
        self.failures: dict[str, Exception] = {}
        self._collector: Collector | None = None
        self._run(self._make, torch.device("cpu"))

    def _make(self) -> None:
        self._collector = self._kind(self._metrics)

    def attention(self, key: CallKey, heads: int, call: AttentionCall) -> None:
        """Pass on an attention call."""
        tensors = call.query, call.key, call.value, call.output, call.scores
        self._pass("attention", tensors, lambda: self._layer(key, heads), key, call)

    def attention_output(self, key: CallKey, heads: int, output: Tensor, mask: Tensor | None) -> None:
        """Pass on what an attention module wrote."""
        self._pass("attention_output", (output, mask), lambda: self._layer(key, heads), output, mask)

    def block(self, key: _BlockKey, block: BlockCall) -> None:
        """Pass on a layer's input and output."""
        tensors = block.input, block.output
        self._pass("block", tensors, lambda: self.blocks.setdefault(key, LayerSums()), block)

    def projections(self, key: CallKey, heads: int, projections: Projections) -> None:
        """Pass on the projections of an attention call."""
        self._pass("projections", (), lambda: self._layer(key, heads), key, projections)

    def settle(self) -> None:
        """Let it add what has waited to its sums."""
        if self._collector is not None:
            self._run(self._settle, self._device)

    def _settle(self) -> None:
        assert self._collector is not None
        self._collector.settle()
        settle_values(self._sums())

    def zero(self) -> None:
        """Let it forget what it counted; its sums are zeroed by the caller."""
        if self._collector is not None:
            self._run(self._collector.zero, self._device)

    def derive(self, stack: DerivedStack) -> None:
        """Add its metrics to a stack, derived from its sums alone."""
        if self._collector is not None:
            self._run(lambda: self._derive(stack), self._device)

    def _pass(
        self, event: str, tensors: Sequence[Tensor | None], layer: Callable[[], LayerSums], *arguments: Any
    ) -> None:
        """Pass an event on, unless its class does not take it; tensors must be left as they are."""
        collector = self._collector
        if collector is None or getattr(self._kind, event) is getattr(Collector, event):
            return
        device = next((x.device for x in tensors if x is not None), self._device)
        before = _versions(tensors)
        self._run(lambda: getattr(collector, event)(layer(), *arguments), device)
        if _versions(tensors) != before:
            # too late for this step where the tensors are training's own, and so all the more to be said
            self.drop(RuntimeError(f"{self.name}.{event} wrote to tensors of the model"))

    def _derive(self, stack: DerivedStack) -> None:
        assert self._collector is not None
        layers = {i: self.layers[key] for i, key in stack.keys.items() if key in self.layers}
        own = DerivedStack(layers, stack.keys, stack.heads, stack.rank, baseline=None, previous=None)
        own.add_means(layers)
        own.add_means({i: self.blocks[key] for i, key in stack.blocks.items() if key in self.blocks})
        self._collector.derive(own)
        for names, indices, values in own.values:
            self._check(names, indices, values, stack.heads)
        stack.values += own.values

    def _check(self, names: Sequence[str], indices: Sequence[int], values: Tensor, heads: list[int]) -> None:
        """Raise unless values are those of its own metrics, in the shape of these layers."""
        others = [name for name in names if name.removesuffix(".stderr") not in self._metrics]
        if others:
            raise ArgumentError(f"Expected {self.name} to add {list(self._metrics)} but got {others}.")
        for name in names:
            tails = {(heads[i],)[: len(spec_of(name).axes) - 1] for i in indices}
            expected = [(len(indices), len(names), *tail) for tail in tails]
            if [tuple(values.shape)] != expected or not values.is_floating_point():
                raise ArgumentError(
                    f"Expected {self.name} to add floating point values of {name!r}, {expected} for "
                    f"{len(indices)} layers, but got {values.dtype} {list(values.shape)}."
                )

    def _layer(self, key: CallKey, heads: int) -> LayerSums:
        layer = self.layers.setdefault(key, LayerSums())
        layer.heads = heads
        return layer

    @property
    def _device(self) -> torch.device:
        for layer in self._sums():
            for x in (*layer.sums.values(), *(entry.values for entry in layer.waiting)):
                return x.device
        return torch.device("cpu")

    def _sums(self) -> list[LayerSums]:
        return [*self.layers.values(), *self.blocks.values()]

    def _run(self, function: Callable[[], None], device: torch.device) -> None:
        try:
            with without_trace(device):
                function()
        except Exception as error:
            self.drop(let_go(error))
        if self._collector is not None:
            for name, failure in self._collector.failures.items():
                self.failures.setdefault(name, failure)

    def drop(self, error: Exception) -> None:
        """Forget the collector and its sums: the rest of a sample's events would give a part of a number."""
        for name in self._metrics:
            self.failures.setdefault(name.partition(".")[0], error)
        self._collector = None
        self.layers, self.blocks = {}, {}


def _versions(tensors: Iterable[Tensor | None]) -> list[int]:
    return [version_of(x) for x in tensors if x is not None and not x.is_inference()]
