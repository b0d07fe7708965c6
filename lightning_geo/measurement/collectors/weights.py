"""The parameters of an attention: its projections by head, and what they are given."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_geo.functional import HeadReads, HeadWeights
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.derived import DerivedStack
from lightning_geo.measurement.sums import LayerSums, add_values
from lightning_geo.metrics.registry import reads_of, roles_of
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
        #: RV coefficients of heads' weights, call -> metric -> [h, h]: no sums, the same on every rank
        self._overlaps: dict[CallKey, dict[str, Tensor]] = {}

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
                    values = self.value(name, {"inputs": part}, (len(part.x), layer.heads))
                    add_values([layer], f"inputs.{role}", (name,), values[None, None])
        if weighing:
            self._weighed.add(key)
            self._measure(layer, key, weights)

    def _measure(self, layer: LayerSums, key: CallKey, weights: dict[str, Tensor]) -> None:
        names = [
            name for name in self._of_weights
            if set(roles_of(name)) <= set(weights) and not (key.cross and spec_of(name).self_attention)
        ]  # fmt: skip
        drifting = [n.rpartition(".")[2] for n in names if spec_of(n).name == "weight_drift"]
        heads = HeadWeights(**weights, heads=layer.heads, start=self._start_of(key, weights, drifting))
        shapes = {name: (layer.heads,) if len(spec_of(name).axes) == 2 else () for name in names}
        values = {n: self.value(n, {"weights": heads}, shapes[n], *_part(n)) for n in names}
        for group, axes in (("weights.head", 2), ("weights.layer", 1)):
            of_group = tuple(name for name in names if len(spec_of(name).axes) == axes)
            if of_group:  # as those of one sequence: ranks have the same
                stacked = torch.stack([values[name] for name in of_group])
                add_values([layer], group, of_group, stacked[None, :, None])
        self._overlaps[key] = {name: heads.overlap(role) for name, role in _OVERLAPS.items() if name in names}

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
