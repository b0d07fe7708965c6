"""From a tap's events of one model to the mergeable sums of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.measurement.collectors.attention_rows import AttentionRows
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.collectors.importance import Importance
from lightning_geo.measurement.collectors.patterns import Patterns
from lightning_geo.measurement.collectors.role_moments import RoleMoments
from lightning_geo.measurement.collectors.score_pairs import ScorePairs
from lightning_geo.measurement.collectors.stream import Stream
from lightning_geo.measurement.collectors.updates import Draw, Updates
from lightning_geo.measurement.collectors.visibility import Visibility
from lightning_geo.measurement.collectors.weights import Weights
from lightning_geo.measurement.foreign_collector import ForeignCollector
from lightning_geo.measurement.head_placement import place_heads
from lightning_geo.measurement.row_sampling import MaxQueries
from lightning_geo.measurement.sums import LayerSums, settle_values
from lightning_geo.metrics.foreign import FOREIGN
from lightning_geo.metrics.registry import reads_of
from lightning_geo.observe import AttentionCall, BlockCall, CallKey, HeadGradientHook, Projections
from lightning_geo.observe.packed.splitting import by_document
from lightning_geo.utils.ranks import rank

__all__ = ["SOURCES", "SampleStatistics"]

#: The collectors.
SOURCES: tuple[type[Collector], ...] = (
    AttentionRows, RoleMoments, Stream, Updates, Visibility, Weights, ScorePairs, Importance,
)  # fmt: skip


#: Why foreign collectors measure nothing.
_FOREIGN_SPLIT = "tensor parallelism leaves some of a layer's heads on each rank, which its collector ignores"


class SampleStatistics:
    """The tap's observer: passes events to the collectors of the requested metrics.

    Args:
        metrics: Stored names to measure.
        max_queries: See :class:`.AttentionRows`.
        seed: Which ones, beside the number of the call, its module and the leader.
        start: Weights at the run's start, by attention module and role; what is missing is filled in.
        asked: Which calls to measure; of the others only their keys are kept, which number the layers.
        modules: Returns the model's own modules by path.
        drawn: Weights drawn at the sample before by path; those of this one take their place.
        trained: See :class:`.Visibility`.
        patterns: Whether to keep attention patterns, see :class:`.Patterns`.
        leader: First of the ranks that have slices of the same layers; None for this rank.
        calls: How many calls are measured, if earlier samples have shown it.

    Raises:
        LookupError: If nothing offers what a metric reads.
    """

    def __init__(
        self,
        metrics: Iterable[str],
        max_queries: MaxQueries = None,
        seed: str = "",
        start: dict[str, dict[str, Tensor]] | None = None,
        asked: Callable[[CallKey], bool] = lambda key: True,
        modules: Callable[[], dict[str, nn.Module]] = dict,
        drawn: dict[str, Draw] | None = None,
        trained: Mapping[CallKey, Tensor] | None = None,
        patterns: bool = False,
        leader: int | None = None,
        calls: int | None = None,
    ) -> None:
        #: whether a call is measured
        self.measures = asked
        self.layers: dict[CallKey, LayerSums] = {}
        #: path of a list item and the call that it belongs to -> sums of input and output
        self.blocks: dict[tuple[str, CallKey], LayerSums] = {}
        named, foreign = _by_source(metrics)
        if leader is not None:  # the parameters of a layer that are whole here are not the layer's
            named[Updates] = ()
        seed = f"{seed} rank {rank() if leader is None else leader}"
        start = {} if start is None else start
        self._scores = ScorePairs(named[ScorePairs])
        self._importance = Importance(named[Importance])
        self._rows = AttentionRows(named[AttentionRows], max_queries, seed, calls)
        #: whether rows are drawn of long sequences alone
        self.draws_if_long = max_queries == "auto"
        every: list[Collector] = [
            self._rows,
            RoleMoments(named[RoleMoments], seed, calls),
            Stream(named[Stream], calls),
            Updates(named[Updates], modules, {} if drawn is None else drawn),
            Visibility(named[Visibility], trained),
            Weights(named[Weights], start),
            self._scores,
            self._importance,
        ]
        self.collectors = [collector for collector in every if collector.metrics]
        if patterns:
            self.collectors.append(Patterns())
        self.foreign = [ForeignCollector(kind, names) for kind, names in foreign.items()]
        #: whether anything here is computed from projections
        self.reads_projections = bool(named[Weights]) or any(
            kind.projections is not Collector.projections for kind in foreign
        )
        #: whether anything here needs to know padding that masks do not hide
        self.reads_padding = bool(named[Visibility])
        #: returns the gradient hook of an attention call; None where no gradient is needed
        self.gradient_hook: Callable[[CallKey, AttentionCall], HeadGradientHook] | None = None

    @property
    def estimated(self) -> list[str]:
        """Paths of modules whose long calls were measured on some rows, by the default of ``max_queries``."""
        return list(self._rows.estimated)

    def attention(self, key: CallKey, call: AttentionCall) -> HeadGradientHook | None:
        """Measure one attention call, and return the hook for its training gradient, if any."""
        layer = self.layers.setdefault(key, LayerSums())
        layer.heads, layer.slice = call.heads, call.slice
        if not self.measures(key):
            return None
        self._scores.begins(key)
        for part in by_document(call):
            for collector in self.collectors:
                collector.attention(layer, key, part)
            for other in self.foreign:
                other.attention(key, call.heads, part)
        return None if self.gradient_hook is None else self.gradient_hook(key, call)

    def expect(self, heads: Mapping[CallKey, int]) -> None:
        """Keep the keys of calls that were neither requested nor observed, in their order.

        Args:
            heads: Heads of every call.
        """
        self.layers = {key: self.layers.get(key) or LayerSums(heads=count) for key, count in heads.items()}

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None:
        """Measure the hidden states that the attention module returned."""
        if key in self.layers and self.measures(key):
            for collector in self.collectors:
                collector.attention_output(self.layers[key], output, mask)
            for other in self.foreign:
                other.attention_output(key, self.layers[key].heads, output, mask)

    def block(self, block: BlockCall) -> None:
        """Measure a layer's input and output."""
        owner = next((key for key in block.keys if not key.cross), block.keys[0])
        if not self.measures(owner):
            return
        layer = self.blocks.setdefault((block.name, owner), LayerSums())
        for collector in self.collectors:
            collector.block(layer, block)
        for other in self.foreign:
            other.block((block.name, owner), block)

    def projections(self, key: CallKey, projections: Projections) -> None:
        """Measure the projections of a call, and their inputs."""
        if key in self.layers and self.measures(key):
            for collector in self.collectors:
                collector.projections(self.layers[key], key, projections)
            for other in self.foreign:
                other.projections(key, self.layers[key].heads, projections)

    def importance(self, by_call: Mapping[CallKey, Tensor]) -> None:
        """Count the importance [sequence, head] of heads to the losses of sequences."""
        self._importance.add(self._measured(), {k: v for k, v in by_call.items() if self.measures(k)})

    def expect_importance(self, device: torch.device) -> None:
        """Reserve the sums of importance, on every rank."""
        self._importance.expect(self._measured(), device)

    def _measured(self) -> dict[CallKey, LayerSums]:
        return {key: layer for key, layer in self.layers.items() if self.measures(key)}

    def score(self, sequences: int) -> None:
        """Measure single scores on the first ``sequences`` sequences that run from now on, and on no more."""
        self._scores.score(sequences)

    def settle(self) -> None:
        """Let collectors compute what they gathered of several layers, and add it to the sums."""
        for collector in self._every():
            collector.settle()
        settle_values((*self.layers.values(), *self.blocks.values()))

    def zero(self) -> None:
        """Keep the layout, count nothing."""
        self.settle()
        for collector in self._every():
            collector.zero()
        for layer in self.everything():
            layer.sums = {name: torch.zeros_like(value) for name, value in layer.sums.items()}
            layer.maxima = {name: torch.full_like(v, -torch.inf) for name, v in layer.maxima.items()}

    @property
    def failures(self) -> dict[str, Exception]:
        """The first error of each foreign metric, by name."""
        return {name: error for collector in self._every() for name, error in collector.failures.items()}

    def void_failures(self) -> None:
        """Void metrics that failed here, on all ranks: the others' values alone would pass for the whole."""
        self.settle()
        failed = set(self.failures)
        for layer in self.everything() if failed else ():
            layer.void(failed)

    def _every(self) -> list[Collector | ForeignCollector]:
        return [*self.collectors, *self.foreign]

    def drop_foreign(self, error: Exception) -> None:
        """Drop foreign collectors and their sums; ``error`` becomes the reason."""
        for other in self.foreign:
            other.drop(error)

    def everything(self) -> list[LayerSums]:
        """Return the sums of all layers and blocks."""
        return [layer for _, layer in (*self.named(), *self.named_foreign())]

    def release(self) -> None:
        """Free the sums."""
        for layer in self.everything():
            layer.sums, layer.maxima = {}, {}

    def place_heads(self) -> None:
        """Put the sums of slices of heads at their places; see :func:`.place_heads`."""
        self.settle()
        layers = list(self.layers.values())
        if any(layer.slice.count > 1 for layer in layers):
            self.drop_foreign(LookupError(_FOREIGN_SPLIT))
        for layer in layers:
            place_heads(layer)

    def named(self) -> list[tuple[tuple[Any, ...], LayerSums]]:
        """Return key and sums of layers and blocks, sorted: ranks may have met them in different orders."""
        self.settle()
        return _sorted(self.layers, self.blocks)

    def named_foreign(self) -> list[tuple[tuple[Any, ...], LayerSums]]:
        """Return key and sums of foreign collectors' layers and blocks, sorted."""
        others = sorted(self.foreign, key=lambda other: other.name)
        return [((o.name, *key), layer) for o in others for key, layer in _sorted(o.layers, o.blocks)]


def _sorted(*groups: Mapping[Any, LayerSums]) -> list[tuple[tuple[Any, ...], LayerSums]]:
    return [item for group in groups for item in sorted(group.items(), key=lambda item: item[0])]


def _by_source(
    metrics: Iterable[str],
) -> tuple[dict[type[Collector], tuple[str, ...]], dict[type[Collector], tuple[str, ...]]]:
    """Return the metrics of each built-in collector, which offers what they read, and of foreign ones."""
    own: dict[type[Collector], list[str]] = {source: [] for source in SOURCES}
    foreign: dict[type[Collector], list[str]] = {}
    for name in metrics:
        metric = FOREIGN.get(name.partition(".")[0])
        if metric is not None and metric.collector is not None:
            foreign.setdefault(metric.collector, []).append(name)
            continue
        reads = frozenset(reads_of(name))
        sources = [source for source in SOURCES if reads <= source.offers]
        if not sources:
            raise LookupError(f"Expected a source of data for {name!r}, which reads {sorted(reads)}.")
        own[sources[0]].append(name)
    return (
        {source: tuple(names) for source, names in own.items()},
        {source: tuple(names) for source, names in foreign.items()},
    )
