"""Attention by query row: entropies and patterns, and the attention that each key receives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_geo.functional._tensors import exact_dtype
from lightning_geo.kernels import STATISTICS
from lightning_geo.kernels.workspace import constant, where_defined
from lightning_geo.measurement.batches import BatchEntry, LayerBatches, limit_of
from lightning_geo.measurement.call_statistics import call_statistics
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.row_sampling import (
    MaxQueries,
    draw_rows,
    is_mean_over_rows,
    rows_to_draw,
    variance_of_mean,
)
from lightning_geo.measurement.sums import LayerSums, add_maximum, add_values, joined, void_values
from lightning_geo.measurement.waiting_results import WaitingResults
from lightning_geo.metrics.registry import reads_of
from lightning_geo.metrics.selection import spec_of
from lightning_geo.observe import AttentionCall, CallKey
from lightning_geo.utils.ranks import world_size

__all__ = ["AttentionRows"]

#: What is read by key rather than by query row.
_BY_KEY = frozenset({"received", "key_mask"})


class _Rows(NamedTuple):
    """The metrics of a call, and the planes in front of which they are computed."""

    fields: tuple[str, ...]
    means: tuple[str, ...]
    maxima: tuple[str, ...]


class _Sums(NamedTuple):
    """Rows of L layers that are alike, added up by sequence and head."""

    layers: list[LayerSums]
    rows: _Rows
    #: [L, B, H], whether a live row is not finite
    broken: Tensor
    #: [L, P, B, H] by mean: the sum, of how many rows, and the variance of the mean if rows were drawn
    totals: Tensor | None
    numbers: Tensor | None
    variances: Tensor | None
    #: [L, B, H] by maximum
    maxima: list[Tensor]

    @property
    def layout(self) -> tuple[object, ...]:
        """Equal for what is averaged together."""
        dtype = None if self.totals is None else self.totals.dtype
        return self.rows, self.broken.shape[1:], self.broken.device, dtype, self.variances is None

    @property
    def nbytes(self) -> int:
        """Bytes that wait."""
        return self.broken.nbytes + sum(
            x.nbytes for x in (self.totals, self.numbers, self.variances, *self.maxima) if x is not None
        )


class AttentionRows(Collector):
    """Statistics of attention rows, averaged over the real rows of each sequence.

    Args:
        metrics: Stored names of the metrics to measure.
        max_queries: Query rows to measure per sequence, drawn at random; None for all of them, ``"auto"`` for
            all unless there are many.
        seed: Which ones, beside the number of the call and its module; other on ranks with other inputs.
        calls: How many calls are expected.
    """

    offers = frozenset(STATISTICS) | _BY_KEY

    def __init__(
        self,
        metrics: tuple[str, ...],
        max_queries: MaxQueries = None,
        seed: str = "",
        calls: int | None = None,
    ) -> None:
        if isinstance(max_queries, int):
            # some rows do not tell what is no mean over rows; where other calls are short enough to measure
            # all of theirs, a value would be that of the short calls alone
            metrics = tuple(n for n in metrics if is_mean_over_rows(n))
        super().__init__(metrics)
        self._max_queries = max_queries
        self._seed = seed
        #: modules of which some rows were measured although nobody limited them
        self.estimated: dict[str, None] = {}
        #: attention calls of each module so far, documents of different lengths counted apart
        self._drawn: dict[CallKey, int] = {}
        self._sums = WaitingResults(self._add_averages)
        self._rows = LayerBatches(self._add_rows, calls=calls, owned=True)
        self._received = LayerBatches(self._add_received, calls=calls, owned=True)
        self._reads = {name: frozenset(reads_of(name)) for name in self.metrics}

    def attention(self, layer: LayerSums, key: CallKey, call: AttentionCall) -> None:
        number = self._drawn[key] = self._drawn.get(key, 0) + 1
        metrics = [n for n in self.metrics if not (call.offset is None and spec_of(n).self_attention)]
        if not metrics:
            return
        sample = None
        batch, queries, _ = call.lengths
        limit = rows_to_draw(self._max_queries, queries)
        if limit is not None:
            # errors add up as those of independent draws, so no call, rank or layer may draw as another does
            seed = f"{self._seed} call {number} {key}"
            sample = draw_rows(batch, queries, call.query_mask, limit, seed, call.device)
            if self._max_queries == "auto":
                metrics = self._estimated(layer, key, call, metrics)
        # logsumexp tells whether all scores are finite
        requested = frozenset().union(*(self._reads[n] for n in metrics)) - {"key_mask"} | {"logsumexp"}
        statistics = call_statistics(call, requested, None if sample is None else sample.rows)
        planes = {
            field: plane
            for field in STATISTICS
            if field != "received" and (plane := getattr(statistics, field)) is not None
        }
        by_row = [name for name in metrics if self._reads[name] <= planes.keys()]
        rows = _Rows(
            tuple(planes),
            tuple(name for name in by_row if spec_of(name).summary == "mean"),
            tuple(name for name in by_row if spec_of(name).summary == "max"),
        )
        tensors = {**planes, "live": statistics.live}
        if sample is not None:
            tensors["fraction"] = sample.fraction
        self._rows.add(BatchEntry((layer, rows), tensors, {}, rows))
        by_key = tuple(name for name in metrics if "received" in self._reads[name])
        if by_key and statistics.received is not None:
            owner, tensors = (layer, by_key), {"received": statistics.received}
            self._received.add(BatchEntry(owner, tensors, {"key_mask": call.key_mask}, by_key))

    def _estimated(
        self, layer: LayerSums, key: CallKey, call: AttentionCall, metrics: list[str]
    ) -> list[str]:
        """The metrics that a draw of rows has; the others have no value in this sample, on any rank."""
        self.estimated[key.module] = None
        lost = [name for name in metrics if not is_mean_over_rows(name)]
        by_key = tuple(name for name in lost if "received" in self._reads[name])
        like = torch.empty(0, device=call.device)
        void_values(layer, "received", by_key, (call.heads,), like)
        for name in (name for name in lost if name not in by_key):
            layer.maxima[name] = like.new_full((call.heads,), torch.inf)  # NaN need not survive a maximum
        return [name for name in metrics if name not in lost]

    def _add_rows(
        self,
        owners: list[tuple[LayerSums, _Rows]],
        tensors: dict[str, Tensor],
        shared: dict[str, Tensor | None],
    ) -> None:
        rows = owners[0][1]
        planes = {field: tensors[field] for field in rows.fields}
        live = tensors["live"]
        logsumexp = planes["logsumexp"]
        broken = (live & (logsumexp - logsumexp != 0)).any(-1)
        totals = numbers = variances = None
        if rows.means:
            stacked = torch.stack([self.value(name, planes, live.shape) for name in rows.means], 1)
            counted = live[:, None] & (stacked == stacked)  # all but NaN
            totals = torch.where(counted, stacked, constant(0.0, stacked)).sum(-1)
            numbers = counted.sum(-1)
            if "fraction" in tensors:
                variances = variance_of_mean(stacked, counted, tensors["fraction"][:, None])
        maxima = [
            torch.where(live, values, constant(-torch.inf, values)).amax(-1)
            for values in (self.value(name, planes, live.shape) for name in rows.maxima)
        ]
        layers = [layer for layer, _ in owners]
        sums = _Sums(layers, rows, broken, totals, numbers, variances, maxima)
        self._sums.add(sums, limit=limit_of(live.device))

    def _add_averages(self, group: list[_Sums]) -> None:
        """Average over rows those of layers that are alike."""
        layers, rows = [layer for sums in group for layer in sums.layers], group[0].rows
        # a sequence with NaN or infinity in it has no value, rather than that of its other rows
        broken = joined([sums.broken for sums in group])
        for layer, count in zip(layers, broken.sum((1, 2), dtype=exact_dtype(broken)), strict=True):
            layer.add("broken", count)
        intact = ~broken
        if rows.means:
            totals, numbers = (joined([getattr(s, name) for s in group]) for name in ("totals", "numbers"))
            values = where_defined(intact[:, None], totals / numbers)  # 0/0 has none either
            variances = None
            if group[0].variances is not None:
                variances = joined([sums.variances for sums in group if sums.variances is not None])
            elif isinstance(self._max_queries, int) or (self._max_queries == "auto" and world_size() > 1):
                variances = torch.zeros_like(values)  # exact; ranks with longer calls have the same sums
            add_values(layers, "row", rows.means, values, variances)
        for place, name in enumerate(rows.maxima):
            add_maximum(layers, name, where_defined(intact, joined([sums.maxima[place] for sums in group])))

    def _add_received(
        self,
        owners: list[tuple[LayerSums, tuple[str, ...]]],
        tensors: dict[str, Tensor],
        shared: dict[str, Tensor | None],
    ) -> None:
        names, key_mask = owners[0][1], shared["key_mask"]
        received = tensors["received"]
        if key_mask is not None:
            key_mask = key_mask.expand(len(owners), *key_mask.shape)
        quantities = {"received": received, "key_mask": key_mask}
        values = [self.value(name, quantities, received.shape[:-1]) for name in names]
        add_values([layer for layer, _ in owners], "received", names, torch.stack(values, 1))

    def settle(self) -> None:
        self._rows.flush()
        self._sums.finish()
        self._received.flush()

    def zero(self) -> None:
        self._drawn.clear()
        self.estimated.clear()

    def derive(self, stack: DerivedStack) -> None:
        indices = [index for index, layer in stack.layers.items() if "broken" in layer.sums]
        if indices:
            stack.add_broken(indices, torch.stack([stack.layers[i].sums["broken"] for i in indices]))
