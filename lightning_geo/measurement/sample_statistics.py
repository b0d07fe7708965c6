"""From what the tap sees of one model to the mergeable statistics of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_geo.functional import (
    HeadMoments,
    HeadWeights,
    head_moments,
    masked_mean,
    stream_statistics,
)
from lightning_geo.functional.stream import mean_over_tokens
from lightning_geo.measurement.call_statistics import (
    ObservedRows,
    call_statistics,
    observed_scores,
)
from lightning_geo.measurement.observed_values import add_cones, planes_of, reads_by_document, value_of
from lightning_geo.measurement.requested_metrics import RequestedMetrics
from lightning_geo.measurement.row_sampling import draw_rows, variance_of_mean
from lightning_geo.measurement.sums import LayerStatistics
from lightning_geo.metrics.registry import metric_function, reads_of
from lightning_geo.metrics.selection import spec_of
from lightning_geo.observe import AttentionCall, BlockCall, CallKey, HeadGradientHook, Projections
from lightning_geo.observe.packed.splitting import by_document
from lightning_geo.probe.limits import SCORED_SEQUENCES
from lightning_geo.utils.ranks import rank

__all__ = ["SampleStatistics"]

#: Largest width for which the d×d second moment of all heads' outputs is kept by default.
GRAM_MAX_WIDTH = 1024


class SampleStatistics:
    """Turns what the tap sees into statistics; the tap's observer.

    Args:
        metrics: Stored names to measure.
        max_queries: Query rows to measure per sequence, drawn at random; None for all of them.
        seed: Which ones, beside the number of the call, its module and this process's rank.
        start: Weights at the run's start, by attention module and role; what is missing is filled in.
    """

    def __init__(
        self,
        metrics: Iterable[str],
        max_queries: int | None = None,
        seed: str = "",
        start: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        self._max_queries = max_queries
        self._seed = seed
        #: attention calls of each module so far, documents of different lengths counted apart
        self._drawn: dict[CallKey, int] = {}
        self.layers: dict[CallKey, LayerStatistics] = {}
        #: path of a list item and the call that it belongs to -> statistics of input and output
        self.blocks: dict[tuple[str, CallKey], LayerStatistics] = {}
        self._requested = RequestedMetrics.of(metrics)
        #: sequences of each call that the metrics of kind ``scores`` have had
        self._scored: dict[CallKey, int] = {}
        #: sequences, the first ones, whose single scores are looked at
        self.scored = SCORED_SEQUENCES
        #: sequences that they had before the packed call whose documents are being shown
        self._scored_before: dict[CallKey, int] = {}
        #: whether anything here is computed from projections
        self.reads_projections = bool(self._requested.weights or self._requested.reads)
        self._weighed: set[CallKey] = set()
        self._start = {} if start is None else start
        #: RV coefficients of heads' weights, call -> metric -> [h, h]: no sums, the same on every rank
        self.overlaps: dict[CallKey, dict[str, Tensor]] = {}
        #: returns the gradient hook of an attention call; None where no gradient is needed
        self.gradient_hook: Callable[[CallKey, AttentionCall], HeadGradientHook] | None = None

    def projections(self, key: CallKey, projections: Projections) -> None:
        """Measure the weights, once in a sample however often they are used, and what they were given."""
        layer = self.layers.get(key)
        call = projections.call
        weighing = bool(self._requested.weights) and key not in self._weighed
        if layer is None or not (weighing or self._requested.reads):
            return
        weights = projections.weights()
        for name in self._requested.reads:
            role = name.rpartition(".")[2]
            read = projections.read(role)
            if call is not None and role in weights and read is not None:
                for part in reads_by_document(call, role, read, weights[role], layer.heads):
                    layer.add_values(f"reads.{role}", (name,), metric_function(name)(part)[None])
        if weighing:
            self._weighed.add(key)
            self._measure_weights(layer, key, weights)

    def _measure_weights(self, layer: LayerStatistics, key: CallKey, weights: dict[str, Tensor]) -> None:
        names = [
            n for n in self._requested.weights
            if set(reads_of(n)) <= set(weights) and not (key.cross and spec_of(n).self_attention)
        ]  # fmt: skip
        drifting = [n.rpartition(".")[2] for n in names if spec_of(n).name == "weight_drift"]
        heads = HeadWeights(**weights, heads=layer.heads, start=self._start_of(key, weights, drifting))
        values = {name: value_of(name, heads) for name in names}
        for group, axes in (("weights.head", 2), ("weights.layer", 1)):
            mine = tuple(name for name in names if len(spec_of(name).axes) == axes)
            if mine:  # as those of one sequence: ranks have the same
                layer.add_values(group, mine, torch.stack([values[name] for name in mine])[:, None])
        pairs = {"read_overlap.query": "query", "read_overlap.key": "key", "read_overlap.value": "value",
                 "write_overlap": "output"}  # fmt: skip
        self.overlaps[key] = {name: heads.overlap(role) for name, role in pairs.items() if name in names}

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

    def attention(self, key: CallKey, call: AttentionCall) -> HeadGradientHook | None:
        """Measure one attention call, and return the hook for its training gradient, if any."""
        layer = self.layers.setdefault(key, LayerStatistics())
        layer.heads = call.heads
        self._scored_before[key] = self._scored.get(key, 0)
        for part in by_document(call):
            moments = self._measure_vectors(layer, part)
            number = self._drawn[key] = self._drawn.get(key, 0) + 1
            # errors add up as those of independent draws, so no call, rank or layer may draw as another does
            self._measure_rows(layer, part, moments, f"{self._seed} rank {rank()} call {number} {key}")
            self._measure_scores(layer, key, part)
        return None if self.gradient_hook is None else self.gradient_hook(key, call)

    def _measure_rows(
        self, layer: LayerStatistics, call: AttentionCall, moments: dict[str, HeadMoments], seed: str
    ) -> None:
        sample = None
        if self._max_queries is not None:
            batch, queries, _ = call.lengths
            sample = draw_rows(batch, queries, call.query_mask, self._max_queries, seed, call.device)
        names = [
            name
            for name in (*self._requested.rows, *self._requested.maxima, *self._requested.sequences)
            if not (call.offset is None and spec_of(name).self_attention)
            # some rows do not tell what is no mean over rows; where other calls are short enough to measure
            # all of theirs, a value would be that of the short calls alone
            and (self._max_queries is None or name in self._requested.rows or not reads_of(name))
        ]
        if not names:
            return
        # logsumexp tells whether all scores are finite
        wanted = {field for name in names for field in reads_of(name)} | {"logsumexp"}
        statistics = call_statistics(call, wanted, None if sample is None else sample.rows)
        live = statistics.live
        assert statistics.logsumexp is not None
        # a sequence with NaN or infinity in it has no value, rather than that of its other rows
        broken = (live & ~statistics.logsumexp.isfinite()).any(-1)
        layer.add("broken", broken.sum())
        planes = planes_of((name for name in names if spec_of(name).kind == "row"), statistics)
        rows = tuple(name for name in self._requested.rows if name in planes)
        if rows:
            stacked = torch.stack([planes[name] for name in rows])
            counted = live & ~stacked.isnan()
            values = torch.where(broken, torch.nan, masked_mean(stacked, counted))
            variances = None
            if sample is not None:
                variances = variance_of_mean(stacked, counted, sample.fraction)
            elif self._max_queries is not None:
                variances = torch.zeros_like(values)  # exact; ranks with longer calls have the same sums
            layer.add_values("row", rows, values, variances)
        for name in (name for name in self._requested.maxima if name in planes):
            values = torch.where(live, planes[name], -torch.inf).amax(-1)
            layer.add_maximum(name, torch.where(broken, torch.nan, values))
        sequences = tuple(name for name in self._requested.sequences if name in names)
        if sequences and "query" in moments and "key" in moments:
            seen = ObservedRows(moments["query"], moments["key"], call.key_mask, statistics)
            values = torch.stack([metric_function(name)(seen) for name in sequences])
            layer.add_values("sequence", sequences, torch.where(broken, torch.nan, values))

    def _measure_scores(self, layer: LayerStatistics, key: CallKey, call: AttentionCall) -> None:
        """Measure what needs every score more than once, on the first sequences alone."""
        known = call.query is not None and call.key is not None
        names = [
            n for n in self._requested.scores
            if not (spec_of(n).self_attention and (call.offset != 0 or call.lengths[1] != call.lengths[2]))
            and (known or reads_of(n) == ("attended",))
        ]  # fmt: skip
        if call.portion is None:
            count = min(self.scored - self._scored.get(key, 0), call.lengths[0])
        else:  # documents come by length: the first ones may be in several batches
            left = self.scored - self._scored_before[key]
            count = sum(number < left for number in call.portion.numbers)
        if names and count <= 0 and key not in self._scored:  # all ranks need the same layout
            self._scored[key] = 0
            none = torch.full((len(names), 1, layer.heads), torch.nan, device=call.device)
            layer.add_values("scores", tuple(names), none)
        if not names or count <= 0:
            return
        self._scored[key] = self._scored.get(key, 0) + count
        scores = observed_scores(call, count)
        values = torch.stack([value_of(name, scores) for name in names])
        layer.add_values("scores", tuple(names), values)

    def _measure_vectors(self, layer: LayerStatistics, call: AttentionCall) -> dict[str, HeadMoments]:
        """Measure what the four roles' vectors look like; returns what rows may need of it."""
        requested, output = self._requested, call.output
        vectors = {"query": call.query, "key": call.key, "value": call.value, "output": call.output}
        gram = requested.gram and output is not None and output.shape[1] * output.shape[3] <= GRAM_MAX_WIDTH
        cones = [name for name in requested.directions if name.endswith(".head")]
        found: dict[str, HeadMoments] = {}
        for role, x in vectors.items():
            statistics = {"scatter"} if role in requested.roles and not (gram and role == "output") else set()
            if role in ("query", "key") and requested.sequences:
                statistics |= {"norm", "directions"}
            if role == "output" and cones:
                statistics.add("directions")
            if x is None or not statistics:
                continue
            mask = call.query_mask if role in ("query", "output") else call.key_mask
            found[role] = moments = head_moments(x, mask, statistics=statistics)
            if "scatter" in statistics:
                layer.add_moments(role, moments)
        if gram and output is not None:  # one matrix for all heads: its blocks serve role output too
            joint = output.transpose(1, 2).flatten(2)[:, None]
            layer.add_moments("heads", head_moments(joint, call.query_mask, statistics="scatter"))
        if cones and "output" in found:
            moments = found["output"]
            valid = moments.valid.sum(-1)[:, None].expand(moments.directions.shape[:2])  # type: ignore[union-attr]
            add_cones(layer, "head", cones, moments, valid)
        return found

    def _measure_stream(
        self, layer: LayerStatistics, stage: str, x: Tensor, mask: Tensor | None, before: Tensor | None = None
    ) -> None:
        """Measure hidden states ``[B, N, d]`` at one stage; tokens' statistics at ``output`` alone."""
        cones = [name for name in self._requested.directions if name.endswith(f".{stage}")]
        tokens = self._requested.tokens if stage == "output" else []
        wanted = {field for name in tokens for field in reads_of(name)}
        if cones:
            wanted.add("directions")
        if not wanted:
            return
        statistics = stream_statistics(x, mask, before, statistics=wanted)
        if cones:
            add_cones(layer, stage, cones, statistics, statistics.valid.sum(-1))
        planes = planes_of(tokens, statistics)
        if planes:
            stacked = torch.stack([*planes.values()])
            values = mean_over_tokens(stacked, statistics.valid, statistics.finite)
            layer.add_values("tokens", tuple(planes), values)

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None:
        """Measure what the attention module wrote."""
        if key in self.layers:
            self._measure_stream(self.layers[key], "attention", output, mask)

    def block(self, block: BlockCall) -> None:
        """Measure a layer's input and output."""
        owner = next((key for key in block.keys if not key.cross), block.keys[0])
        layer = self.blocks.setdefault((block.name, owner), LayerStatistics())
        if block.input is not None:
            self._measure_stream(layer, "input", block.input, block.mask)
        if block.output is not None:
            self._measure_stream(layer, "output", block.output, block.mask, block.input)

    def importance(self, by_call: Mapping[CallKey, Tensor]) -> None:
        """Count the importance [sequence, head] of heads to the losses of sequences."""
        for key, value in by_call.items():
            if key in self.layers:
                self.layers[key].add_values("importance", ("importance",), value[None])

    def expect_importance(self, device: torch.device) -> None:
        """Make room for it: whatever happens to a rank's sequences, all ranks need the same layout."""
        for layer in self.layers.values():
            none = torch.full((1, 1, layer.heads), torch.nan, device=device)
            layer.add_values("importance", ("importance",), none)

    def score(self, sequences: int) -> None:
        """Look at the single scores of that many sequences of what runs from now on, and of no more."""
        self.scored = sequences
        self._scored = dict.fromkeys(self._scored, 0)  # the keys tell what is laid out

    def zero(self) -> None:
        """Keep the layout, count nothing."""
        self._weighed.clear()
        self._drawn.clear()
        self._scored.clear()
        self._scored_before.clear()
        for layer in self.everything():
            layer.sums = {name: torch.zeros_like(value) for name, value in layer.sums.items()}
            layer.maxima = {name: torch.full_like(v, -torch.inf) for name, v in layer.maxima.items()}

    def everything(self) -> list[LayerStatistics]:
        """All layers and blocks, by name: ranks may meet them in different orders."""
        return [layer for _, layer in self.named()]

    def named(self) -> list[tuple[tuple[Any, ...], LayerStatistics]]:
        """Like :meth:`everything`, each with its key."""
        blocks = sorted(self.blocks.items(), key=lambda item: item[0])
        return [*sorted(self.layers.items(), key=lambda item: item[0]), *blocks]
