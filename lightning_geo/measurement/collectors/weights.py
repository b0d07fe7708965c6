"""The parameters of an attention: its projections by head, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_geo.functional import HeadReads, HeadWeights
from lightning_geo.functional.head_products import HeadProducts
from lightning_geo.functional.projection import ReadMoments, summed_moments
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.sums import LayerSums, add_values
from lightning_geo.metrics.registry import products_of, reads_of, roles_of
from lightning_geo.metrics.selection import spec_of
from lightning_geo.observe import AttentionCall, CallKey, Projections

__all__ = ["Weights"]

#: Metrics whose values for all pairs of heads are kept too, and the role whose projections they compare.
_OVERLAPS = {"read_overlap.query": "query", "read_overlap.key": "key", "read_overlap.value": "value",
             "write_overlap": "output"}  # fmt: skip


class Weights(Collector):
    """Projections of queries, keys, values and outputs, measured once in a sample.

    Args:
        metrics: Stored names of the metrics to measure.
        start: Weights at the run's start, by attention module and role; what is missing is filled in.
    """

    offers = frozenset({"weights", "inputs"})

    def __init__(self, metrics: tuple[str, ...], start: dict[str, dict[str, Tensor]]) -> None:
        super().__init__(metrics)
        self._of_weights = [name for name in metrics if "weights" in reads_of(name)]
        self._of_inputs = [name for name in metrics if "inputs" in reads_of(name)]
        self._start = start
        self._weighed: set[CallKey] = set()
        # of weights, which are the same on every rank, there are no sums
        #: RV coefficients of heads' weights, call -> metric -> [h, h]
        self._overlaps: dict[CallKey, dict[str, Tensor]] = {}
        #: what is decomposed on the host, and the metrics that come from it
        self._products: dict[CallKey, HeadProducts] = {}
        self._of_products: dict[CallKey, tuple[str, ...]] = {}

    def projections(self, layer: LayerSums, key: CallKey, projections: Projections) -> None:
        if layer.slice.count > 1:
            return  # parts of weights
        call = projections.call
        weighing = bool(self._of_weights) and key not in self._weighed
        if not (weighing or self._of_inputs):
            return
        weights = projections.weights()
        for name in self._of_inputs:
            role = name.rpartition(".")[2]
            read = projections.read(role)
            if call is not None and role in weights and read is not None:
                for part in _by_document(call, role, read, weights[role], layer.heads):
                    self._add_reads(layer, key, name, part)
        if weighing:
            self._weighed.add(key)
            self._measure(layer, key, weights)

    def _add_reads(self, layer: LayerSums, key: CallKey, name: str, reads: HeadReads) -> None:
        """Add what a role reads of some sequences: values of each, or the moments that values come from."""
        role = name.rpartition(".")[2]
        if not products_of(name) or not _waits(reads.x):
            values = self.value(name, {"inputs": reads}, (len(reads.x), layer.heads))
            add_values([layer], f"inputs.{role}", (name,), values[None, None])
            return
        moments, count = summed_moments(reads)
        layer.add(f"{name}.moments", moments)
        layer.add(f"{name}.count", count)
        held = self._products.setdefault(key, HeadProducts(layer.heads, {})).products
        if f"exact_gram.{role}" not in held:
            held[f"exact_gram.{role}"] = reads.gram

    def _measure(self, layer: LayerSums, key: CallKey, weights: dict[str, Tensor]) -> None:
        names = [
            name for name in self._of_weights
            if set(roles_of(name)) <= set(weights) and not (key.cross and spec_of(name).self_attention)
        ]  # fmt: skip
        drifting = [n.rpartition(".")[2] for n in names if spec_of(n).name == "weight_drift"]
        heads = HeadWeights(**weights, heads=layer.heads, start=self._start_of(key, weights, drifting))
        shapes = {name: (layer.heads,) if len(spec_of(name).axes) == 2 else () for name in names}
        values = {
            n: self.value(n, {"weights": heads}, shapes[n], *_part(n)) for n in names if not products_of(n)
        }
        for group, axes in (("weights.head", 2), ("weights.layer", 1)):
            of_group = tuple(name for name in values if len(spec_of(name).axes) == axes)
            if of_group:  # as those of one sequence: ranks have the same
                stacked = torch.stack([values[name] for name in of_group])
                add_values([layer], group, of_group, stacked[None, :, None])
        self._overlaps[key] = {name: heads.overlap(role) for name, role in _OVERLAPS.items() if name in names}
        self._of_products[key] = tuple(name for name in names if products_of(name))
        read = self._products[key].products if key in self._products else {}
        heads.products.update(read)
        products = {p: heads.product(p) for name in self._of_products[key] for p in products_of(name)}
        if products:
            self._products[key] = HeadProducts(layer.heads, read | products, heads.dtype)

    def _start_of(self, key: CallKey, weights: dict[str, Tensor], roles: Iterable[str]) -> dict[str, Tensor]:
        """The weights at the start, by role: these, where there was none before."""
        part = f".part{key.part + 1}" * (key.part > 0)
        kept = self._start.setdefault(f"{key.module}{'.cross' * key.cross}{part}", {}) if roles else {}
        start = {}
        for role in roles:
            if role not in kept:
                kept[role] = weights[role].detach().to("cpu", copy=True).contiguous()
                start[role] = weights[role]
            else:
                start[role] = kept[role]
        return start

    def zero(self) -> None:
        self._weighed.clear()

    def derive(self, stack: DerivedStack) -> None:
        stack.overlaps = {i: self._overlaps[k] for i, k in stack.keys.items() if k in self._overlaps}
        alike: dict[tuple[object, ...], list[int]] = {}
        for index, key in stack.keys.items():
            if key in self._products:
                own = self._products[key]
                shapes = tuple((name, x.shape) for name, x in own.products.items())
                layout = own.heads, own.dtype, shapes, self._of_products.get(key), self._read_in(stack, index)
                alike.setdefault(layout, []).append(index)
        for indices in alike.values():
            stack.deferred.append(self._deferred(stack, indices))
        for key in stack.keys.values():  # the transfer holds them from now on
            self._products.pop(key, None)

    def _read_in(self, stack: DerivedStack, index: int) -> tuple[str, ...]:
        """Metrics of moments of what heads read that a layer has."""
        return tuple(name for name in self._of_inputs if f"{name}.moments" in stack.layers[index].sums)

    def _deferred(
        self, stack: DerivedStack, indices: list[int]
    ) -> tuple[list[Tensor], Callable[[list[Tensor]], None]]:
        """Products of layers that are alike, and what decomposes them on the host, all of them at once."""
        keys, count = [stack.keys[index] for index in indices], len(indices)
        first = self._products[keys[0]]
        heads, dtype, kinds = first.heads, first.dtype, list(first.products)
        of_products, of_moments = self._of_products.get(keys[0], ()), self._read_in(stack, indices[0])
        products = [self._products[key].products[kind] for kind in kinds for key in keys]
        moments = [
            stack.layers[index].sums[f"{name}.{part}"]
            for name in of_moments
            for part in ("moments", "count")
            for index in indices
        ]

        def derive(copies: list[Tensor]) -> None:
            by_layer = (copies[start : start + count] for start in range(0, len(copies), count))
            weights = HeadProducts(count * heads, {kind: torch.cat(next(by_layer)) for kind in kinds}, dtype)
            for name in of_products:
                values = self.value(name, {"weights": weights}, (count * heads,))
                stack.add(name, indices, values.unflatten(0, (count, heads)))
            for name in of_moments:
                total, sequences = torch.stack(next(by_layer)), torch.stack(next(by_layer))
                whitener = weights.whitener(name.rpartition(".")[2]).unflatten(0, (count, -1))
                reads = ReadMoments(total / sequences[..., None, None], whitener, heads)
                stack.add(name, indices, self.value(name, {"inputs": reads}, (count, heads)))

        return products + moments, derive


def _waits(x: Tensor) -> bool:
    """Whether decomposing a weight at once would wait for the device of what it is given.

    It would not on a CPU, which takes twice as long for moments in float64 as for tokens in float32.
    """
    return x.device.type != "cpu"


def _part(name: str) -> tuple[str, ...]:
    return (name.rpartition(".")[2],) if spec_of(name).parts else ()


def _by_document(
    call: AttentionCall,
    role: str,
    read: tuple[Tensor, Tensor | None, Tensor | None],
    weight: Tensor,
    heads: int,
) -> list[HeadReads]:
    """Return the inputs of a role's projection by sequence or document; nothing where the tokens differ."""
    x, y, bias = read
    mask = call.query_mask if role == "query" else call.key_mask
    if mask is not None and mask.shape != x.shape[:2]:
        return []
    if call.documents is None:
        return [HeadReads(x, weight, y, bias, mask, heads)]
    if x.shape[:2] != (call.lengths[0], call.lengths[2 if role != "query" else 1]):
        return []
    keys = role != "query"
    xs = call.documents.split_hidden(x, mask, keys=keys)
    ys = [(None, None)] * len(xs) if y is None else call.documents.split_hidden(y, keys=keys)
    return [HeadReads(a, weight, b, bias, m, heads) for (a, m), (b, _) in zip(xs, ys, strict=True)]
