"""Mergeable statistics of one sample: they add over sequences, micro-batches and ranks.

Per layer, everything is either a sum (float64, so that raw second moments survive a large mean)
or a maximum. A metric of kind ``row``, ``sequence`` or ``tokens`` is kept as the sum of its
per-sequence values and the number of sequences that had one; covariances as count, sum and raw
second moment.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_geo.functional import (
    AttentionStatistics,
    HeadMoments,
    HeadReads,
    HeadWeights,
    StreamStatistics,
    attention_statistics,
    head_moments,
    key_entropy,
    masked_mean,
    stream_statistics,
)
from lightning_geo.functional._tensors import exact_dtype
from lightning_geo.functional.attention import attention_problem
from lightning_geo.functional.gates import gate_shares
from lightning_geo.functional.registry import metric_function, reads_of
from lightning_geo.functional.stream import mean_over_tokens
from lightning_geo.kernels import AttentionProblem, attention
from lightning_geo.kernels.pairs import near_and_mutual, norm_shares
from lightning_geo.ranks import world_size
from lightning_geo.rows import draw_rows, variance_of_mean
from lightning_geo.schema import GATES, ROLES, spec_of, standard_error
from lightning_geo.taps import AttentionCall, BlockCall, CallKey, Projections

__all__ = ["LayerStatistics", "SampleStatistics", "reduce_over_ranks"]

#: Largest width for which the d×d second moment of all heads' outputs is kept by default.
GRAM_MAX_WIDTH = 1024

#: Sequences of a sample, on each rank, from which metrics of kind ``scores`` are taken.
SCORED_SEQUENCES = 2

#: How many tokens away near context is.
NEAR = 4


@dataclass
class LayerStatistics:
    """Sums and maxima of one layer by name; ``names`` says which metrics a stacked one holds."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    heads: int = 0

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum."""
        value = value.to(exact_dtype(value))
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def add_values(
        self, group: str, names: tuple[str, ...], values: Tensor, variances: Tensor | None = None
    ) -> None:
        """Add per-sequence values [P, B, ...] of P metrics; one that is not finite does not count.

        Args:
            group: Which of a layer's groups of metrics they are.
            names: Of the P metrics.
            values: Their means.
            variances: Of these means, where they are estimates.
        """
        if not names:
            return
        defined = values.isfinite()
        self.names[group] = names
        self.add(f"{group}.total", torch.where(defined, values, 0.0).sum(1))
        self.add(f"{group}.count", defined.sum(1))
        if variances is not None:
            self.add(f"{group}.variance", torch.where(defined, variances, 0.0).sum(1))

    def add_maximum(self, name: str, values: Tensor) -> None:
        """Take the largest of per-sequence values [B, H]."""
        value = torch.where(values.isfinite(), values, -torch.inf).amax(0)
        self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value

    def add_moments(self, name: str, moments: HeadMoments) -> None:
        """Add count, sum and raw second moment of vectors."""
        count, mean, scatter = moments.count, moments.mean, moments.scatter
        assert count is not None
        assert mean is not None
        assert scatter is not None
        mean = mean.to(exact_dtype(mean))
        self.add(f"{name}.count", count)
        self.add(f"{name}.sum", mean * count)
        self.add(f"{name}.second", scatter + count * mean[:, :, None] * mean[:, None, :])

    def covariance(self, name: str) -> Tensor | None:
        """Centred covariance [h, D, D] in float64, NaN for fewer than two tokens; ``None`` if absent."""
        if f"{name}.count" not in self.sums:
            return None
        count, total, second = (self.sums[f"{name}.{part}"] for part in ("count", "sum", "second"))
        count = torch.where(count > 1, count.to(total.dtype), torch.nan)
        mean = total / count
        return torch.baddbmm(second / count, mean[:, :, None], mean[:, None, :], alpha=-1)

    def mean_values(self) -> dict[str, Tensor]:
        """Mean over sequences of every metric kept by value, and the maxima; NaN if there was none.

        Estimates come with their standard errors: sequences are the strata of one sample of rows.
        """
        values: dict[str, Tensor] = {}
        for group, names in self.names.items():
            count = self.sums[f"{group}.count"]
            values.update(zip(names, self.sums[f"{group}.total"] / count, strict=True))
            if f"{group}.variance" in self.sums:
                errors = self.sums[f"{group}.variance"].sqrt() / count
                values.update(zip(map(standard_error, names), errors, strict=True))
        for name, value in self.maxima.items():
            values[name] = torch.where(value.isfinite(), value, torch.nan)
        return values


@dataclass(frozen=True)
class _Observed:
    """What metric functions of kind ``sequence`` read (see ``functional.registry``)."""

    query: HeadMoments
    key: HeadMoments
    key_mask: Tensor | None
    statistics: AttentionStatistics

    @property
    def received(self) -> Tensor:
        assert self.statistics.received is not None
        return self.statistics.received


@dataclass(frozen=True)
class _Scores:
    """What metric functions of kind ``scores`` read."""

    #: from queries and keys as they are, None where they could not be told
    products: AttentionProblem | None
    #: whose softmax is the attention
    attended: AttentionProblem
    key_mask: Tensor | None

    @property
    def problem(self) -> AttentionProblem:
        assert self.products is not None
        return self.products

    @functools.cached_property
    def norm_shares(self) -> Tensor:
        return norm_shares(self.problem)

    @functools.cached_property
    def shares(self) -> dict[str, Tensor]:
        wanted = {
            "entropy",
            "visible_keys",
            "first_mass",
            "self_mass",
            "special_mass",
            "received",
            "logsumexp",
        }
        found = attention(replace(self.attended, wanted=frozenset(wanted)))
        assert found.logsumexp is not None
        assert found.received is not None
        planes = {name: plane for name, plane in vars(found).items() if plane is not None}
        planes |= near_and_mutual(self.attended, found.logsumexp, found.live, NEAR)
        received = key_entropy(found.received, self.key_mask)
        return gate_shares(planes, received)


class SampleStatistics:
    """Turns what the tap sees into statistics; the tap's observer.

    Args:
        metrics: Stored names to measure.
        max_queries: Query rows to measure per sequence, drawn at random; None for all of them.
        seed: Which ones.
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
        self.layers: dict[CallKey, LayerStatistics] = {}
        #: path of a list item and the call that it belongs to -> statistics of input and output
        self.blocks: dict[tuple[str, CallKey], LayerStatistics] = {}
        kinds: dict[str, list[str]] = {}
        for name in metrics:
            kinds.setdefault(spec_of(name).kind, []).append(name)
        self._rows = [n for n in kinds.get("row", ()) if spec_of(n).summary == "mean"]
        self._maxima = [n for n in kinds.get("row", ()) if spec_of(n).summary == "max"]
        self._sequences = kinds.get("sequence", [])
        self._tokens = kinds.get("tokens", [])
        self._directions = kinds.get("directions", [])
        spectral = [*kinds.get("moments", ()), *kinds.get("bases", ())]
        self._roles = [r for r in ROLES if any(n.endswith(f".{r}") for n in spectral)]
        if "qk_alignment" in spectral:
            self._roles = [r for r in ROLES if r in {*self._roles, "query", "key"}]
        self._gram = bool(kinds.get("heads"))
        self._scores = kinds.get("scores", [])
        if kinds.get("counts"):  # of what heads' margins say
            every = [f"gate.{gate}" for gate in GATES]
            self._scores = [*every, *(name for name in self._scores if name not in every)]
        #: sequences of each call that the metrics of kind ``scores`` have had
        self._scored: dict[CallKey, int] = {}
        self._reads = kinds.get("reads", [])
        #: real queries and real keys of the calls whose projections are still to be told
        self._real: dict[CallKey, tuple[Tensor | None, Tensor | None]] = {}
        self._weights = kinds.get("weights", [])
        #: whether anything here is computed from projections
        self.reads_projections = bool(self._weights or self._reads)
        self._weighed: set[CallKey] = set()
        self._start = {} if start is None else start
        #: RV coefficients of heads' weights, call -> metric -> [h, h]: no sums, the same on every rank
        self.overlaps: dict[CallKey, dict[str, Tensor]] = {}

    def projections(self, key: CallKey, projections: Projections) -> None:
        """Measure the weights, once in a sample however often they are used, and what they were given."""
        layer = self.layers.get(key)
        real = self._real.pop(key, (None, None))
        weighing = bool(self._weights) and key not in self._weighed
        if layer is None or not (weighing or self._reads):
            return
        weights = projections.weights()
        for name in self._reads:
            role = name.rpartition(".")[2]
            read, mask = projections.read(role), real[role != "query"]
            if role not in weights or read is None or not (mask is None or mask.shape == read[0].shape[:2]):
                continue
            given = HeadReads(read[0], weights[role], *read[1:], mask, layer.heads)
            layer.add_values(f"reads.{role}", (name,), metric_function(name)(given)[None])
        if weighing:
            self._weighed.add(key)
            self._measure_weights(layer, key, weights)

    def _measure_weights(self, layer: LayerStatistics, key: CallKey, weights: dict[str, Tensor]) -> None:
        names = [
            n for n in self._weights
            if set(reads_of(n)) <= set(weights) and not (key.cross and spec_of(n).self_attention)
        ]  # fmt: skip
        drifting = [n.rpartition(".")[2] for n in names if spec_of(n).name == "weight_drift"]
        heads = HeadWeights(**weights, heads=layer.heads, start=self._start_of(key, weights, drifting))
        values = {name: _of_part(name, heads) for name in names}
        for group, axes in (("weights.head", 2), ("weights.layer", 1)):
            mine = tuple(name for name in names if len(spec_of(name).axes) == axes)
            if mine:  # as those of one sequence: ranks have the same
                layer.add_values(group, mine, torch.stack([values[name] for name in mine])[:, None])
        pairs = {"read_overlap.query": "query", "read_overlap.key": "key", "read_overlap.value": "value",
                 "write_overlap": "output"}  # fmt: skip
        self.overlaps[key] = {name: heads.overlap(role) for name, role in pairs.items() if name in names}

    def _start_of(self, key: CallKey, weights: dict[str, Tensor], roles: Iterable[str]) -> dict[str, Tensor]:
        """The weights at the start, by role: these, where there was none before."""
        kept = self._start.setdefault(f"{key.module}{'.cross' * key.cross}", {}) if roles else {}
        start = {}
        for role in roles:
            if role not in kept:
                kept[role] = weights[role].detach().to("cpu", copy=True).contiguous()
                start[role] = weights[role]
            else:
                start[role] = kept[role]
        return start

    def attention(self, key: CallKey, call: AttentionCall) -> None:
        """Measure one attention call."""
        layer = self.layers.setdefault(key, LayerStatistics())
        layer.heads = (call.scores if call.query is None else call.query).shape[1]  # type: ignore[union-attr]
        moments = self._measure_vectors(layer, call)
        self._measure_rows(layer, call, moments, f"{self._seed} {key}")
        self._measure_scores(layer, key, call)
        if self._reads:
            self._real[key] = call.query_mask, call.key_mask()

    def _measure_rows(
        self, layer: LayerStatistics, call: AttentionCall, moments: dict[str, HeadMoments], seed: str
    ) -> None:
        sample = None
        if self._max_queries is not None:
            batch, queries, _ = call.lengths
            sample = draw_rows(batch, queries, call.query_mask, self._max_queries, seed, call.device)
        names = [
            name
            for name in (*self._rows, *self._maxima, *self._sequences)
            if not (call.cross and spec_of(name).self_attention)
            # what is no mean over rows cannot be told from some of them
            and (sample is None or (name in self._rows) or not reads_of(name))
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
        planes = _planes((name for name in names if spec_of(name).kind == "row"), statistics)
        rows = tuple(name for name in self._rows if name in planes)
        if rows:
            stacked = torch.stack([planes[name] for name in rows])
            counted = live & ~stacked.isnan()
            values = torch.where(broken, torch.nan, masked_mean(stacked, counted))
            variances = None if sample is None else variance_of_mean(stacked, counted, sample.fraction)
            layer.add_values("row", rows, values, variances)
        for name in (name for name in self._maxima if name in planes):
            values = torch.where(live, planes[name], -torch.inf).amax(-1)
            layer.add_maximum(name, torch.where(broken, torch.nan, values))
        sequences = tuple(name for name in self._sequences if name in names)
        if sequences and "query" in moments and "key" in moments:
            seen = _Observed(moments["query"], moments["key"], call.key_mask(), statistics)
            values = torch.stack([metric_function(name)(seen) for name in sequences])
            layer.add_values("sequence", sequences, torch.where(broken, torch.nan, values))

    def _measure_scores(self, layer: LayerStatistics, key: CallKey, call: AttentionCall) -> None:
        """Measure what needs every score more than once, on a rank's first sequences alone."""
        known = call.query is not None and call.key is not None
        names = [
            n for n in self._scores
            if not (spec_of(n).self_attention and (call.cross or call.lengths[1] != call.lengths[2]))
            and (known or reads_of(n) == ("attended",))
        ]  # fmt: skip
        count = min(SCORED_SEQUENCES - self._scored.get(key, 0), call.lengths[0])
        if not names or count <= 0:
            return
        self._scored[key] = self._scored.get(key, 0) + count
        query, keys, masks = _attended(call)
        attended = attention_problem(query, keys, **_options(call, masks))
        products: AttentionProblem | None = attended
        if call.scores is not None:
            products = None
            if call.query is not None and call.key is not None:
                products = attention_problem(call.query, call.key, **_options(call, masks))
        mask = call.key_mask()
        scores = _Scores(
            None if products is None else products.first_sequences(count),
            attended.first_sequences(count),
            None if mask is None else mask[:count],
        )
        values = torch.stack([_of_part(name, scores) for name in names])
        layer.add_values("scores", tuple(names), values)

    def _measure_vectors(self, layer: LayerStatistics, call: AttentionCall) -> dict[str, HeadMoments]:
        """Measure what the four roles' vectors look like; returns what rows may need of it."""
        vectors = {"query": call.query, "key": call.key, "value": call.value, "output": call.output}
        output = call.output
        gram = self._gram and output is not None and output.shape[1] * output.shape[3] <= GRAM_MAX_WIDTH
        cones = [name for name in self._directions if name.endswith(".head")]
        found: dict[str, HeadMoments] = {}
        for role, x in vectors.items():
            wanted = {"scatter"} if role in self._roles and not (gram and role == "output") else set()
            if role in ("query", "key") and self._sequences:
                wanted |= {"norm", "directions"}
            if role == "output" and cones:
                wanted.add("directions")
            if x is None or not wanted:
                continue
            mask = call.query_mask if role in ("query", "output") else call.key_mask()
            found[role] = moments = head_moments(x, mask, statistics=wanted)
            if "scatter" in wanted:
                layer.add_moments(role, moments)
        if gram and output is not None:  # one matrix for all heads: its blocks serve role output too
            joint = output.transpose(1, 2).flatten(2)[:, None]
            layer.add_moments("heads", head_moments(joint, call.query_mask, statistics="scatter"))
        if cones and "output" in found:
            moments = found["output"]
            valid = moments.valid.sum(-1)[:, None].expand(moments.directions.shape[:2])  # type: ignore[union-attr]
            _add_cones(layer, "head", cones, moments, valid)
        return found

    def _measure_stream(
        self, layer: LayerStatistics, stage: str, x: Tensor, mask: Tensor | None, before: Tensor | None = None
    ) -> None:
        """Measure hidden states ``[B, N, d]`` at one stage; tokens' statistics at ``output`` alone."""
        cones = [name for name in self._directions if name.endswith(f".{stage}")]
        tokens = self._tokens if stage == "output" else []
        wanted = {field for name in tokens for field in reads_of(name)}
        if cones:
            wanted.add("directions")
        if not wanted:
            return
        statistics = stream_statistics(x, mask, before, statistics=wanted)
        if cones:
            _add_cones(layer, stage, cones, statistics, statistics.valid.sum(-1))
        planes = _planes(tokens, statistics)
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

    def importance(self, by_call: Mapping[CallKey, Tensor], device: torch.device) -> None:
        """Count the importance [H] of heads to one sequence's loss.

        Without any, room is made for it: whatever happens to a rank's sequences, its layout has to be that
        of the others.
        """
        for key, layer in self.layers.items():
            value = by_call.get(key, torch.full((layer.heads,), torch.nan, device=device))
            layer.add_values("importance", ("importance",), value[None, None])

    def zero(self) -> None:
        """Keep the layout, count nothing."""
        self._weighed.clear()
        self._scored.clear()
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


def _planes(names: Iterable[str], statistics: AttentionStatistics | StreamStatistics) -> dict[str, Tensor]:
    """The metrics of kind ``row`` or ``tokens`` that these statistics have the fields for."""
    planes = {}
    for name in names:
        fields = [getattr(statistics, field) for field in reads_of(name)]
        if all(field is not None for field in fields):
            planes[name] = metric_function(name)(*fields)
    return planes


def _of_part(name: str, given: HeadWeights | _Scores) -> Tensor:
    parts = (name.rpartition(".")[2],) if spec_of(name).parts else ()
    values: Tensor = metric_function(name)(given, *parts)
    return values


def _add_cones(
    layer: LayerStatistics,
    stage: str,
    names: list[str],
    statistics: HeadMoments | StreamStatistics,
    valid: Tensor,
) -> None:
    directions = statistics.directions, valid, statistics.directed
    values = torch.stack([metric_function(name)(*directions) for name in names])
    layer.add_values(stage, tuple(names), values)


def call_statistics(call: AttentionCall, wanted: Iterable[str], rows: Tensor | None) -> AttentionStatistics:
    """Those statistics of one observed call, of all rows or of some, through the public function."""
    query, key, masks = _attended(call)
    return attention_statistics(
        query, key, **{**_options(call, masks), "statistics": wanted, "queries": rows}
    )


def _attended(call: AttentionCall) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """Queries, keys and masks whose softmax is the call's attention."""
    query, key, masks = call.query, call.key, call.masks
    if call.scores is not None:  # they are all a mask, on products that are zero
        batch, heads, queries, keys = call.scores.shape
        query = call.scores.new_zeros(1).expand(batch, heads, queries, 1)
        key = call.scores.new_zeros(1).expand(batch, heads, keys, 1)
        masks = (call.scores,)
    assert query is not None
    assert key is not None
    return query, key, masks


def _options(call: AttentionCall, masks: tuple[Any, ...]) -> dict[str, Any]:
    """How a call's scores come about, apart from queries and keys."""
    return {
        "mask": masks or None,
        "is_causal": call.is_causal,
        "causal_alignment": call.causal_alignment,
        "query_mask": call.query_mask,
        "window": call.window,
        "sinks": call.sinks,
        "special": call.special,
        "scale": call.scale,
        "softcap": call.softcap,
        "statistics": None,
        "queries": None,
    }


def reduce_over_ranks(samples: list[SampleStatistics], ok: bool, device: torch.device) -> bool:
    """Merge the statistics of all ranks, in place: every rank makes the same collectives.

    A small one agrees on whether every rank has a sample and all have the same layout; then one
    sum and one maximum over flat buffers.

    Args:
        samples: This rank's statistics.
        ok: Whether this rank's sample is whole.
        device: Where the process group's backend communicates.

    Returns:
        Whether the sample is valid; the same on every rank.
    """
    if world_size() == 1:
        return ok
    digest, failure = 0, None
    buffers: list[tuple[Any, list[tuple[dict[str, Tensor], str]], Tensor]] = []
    try:
        if ok:
            digest, buffers = _pack(samples, device)
    except Exception as error:  # no memory left, say: the other ranks wait for this one all the same
        ok, failure = False, error
    mine = torch.tensor([int(ok), digest], dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    if failure is not None:
        raise failure
    if not all(bool(other[0]) and int(other[1]) == digest for other in everyone):
        return False
    for operation, slots, flat in buffers:
        dist.all_reduce(flat, operation)
        pieces = torch.split(flat, [store[name].numel() for store, name in slots])
        for (store, name), piece in zip(slots, pieces, strict=True):
            store[name] = piece.view(store[name].shape)
    return True


def _pack(
    samples: list[SampleStatistics], device: torch.device
) -> tuple[int, list[tuple[Any, list[tuple[dict[str, Tensor], str]], Tensor]]]:
    """A digest of the layout; per operation, the places in the statistics that it reduces and one buffer."""
    layers = [(i, key, layer) for i, sample in enumerate(samples) for key, layer in sample.named()]
    # names too: other layers of the same shapes (layer drop) must not be added up
    layout: list[Any] = [(i, tuple(key), sorted(layer.names.items())) for i, key, layer in layers]
    buffers = []
    for kind, operation in (("sums", dist.ReduceOp.SUM), ("maxima", dist.ReduceOp.MAX)):
        stores: list[dict[str, Tensor]] = [getattr(layer, kind) for *_, layer in layers]
        slots = [(store, name) for store in stores for name in sorted(store)]
        layout.append([(name, tuple(store[name].shape)) for store, name in slots])
        if slots:
            flat = torch.cat([store[name].flatten() for store, name in slots]).to(device)
            buffers.append((operation, slots, flat))
    return int.from_bytes(hashlib.sha256(repr(layout).encode()).digest()[:7], "big"), buffers
