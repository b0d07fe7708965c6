"""Single scores: what needs every pair of query and key more than once, on the first sequences alone."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional.score_spectra import ScoreProducts
from lightning_geo.measurement.call_statistics import observed_scores
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.sums import LayerSums, add_values
from lightning_geo.metrics.gates import GATES
from lightning_geo.metrics.registry import metric_function, products_of, reads_of
from lightning_geo.metrics.selection import spec_of
from lightning_geo.observe import AttentionCall, CallKey
from lightning_geo.probe.limits import SCORED_SEQUENCES
from lightning_geo.utils.ranks import world_size

__all__ = ["ScorePairs"]

_MARGINS = tuple(f"gate.{gate}" for gate in GATES)

#: Metrics, the type of their values, and products by name and shape but for sequences.
_Layout = tuple[tuple[str, ...], torch.dtype, tuple[tuple[str, torch.Size], ...]]


class ScorePairs(Collector):
    """Scores of the first sequences; their cost grows with the square of the length.

    Args:
        metrics: Stored names of the metrics to measure.
    """

    offers = frozenset({"scores", "attended", "margins"})

    def __init__(self, metrics: tuple[str, ...]) -> None:
        super().__init__(metrics)
        self._counts = [name for name in metrics if "margins" in reads_of(name)]
        by_sequence = [name for name in metrics if name not in self._counts]
        if self._counts:  # of what heads' margins say
            by_sequence = [*_MARGINS, *(name for name in by_sequence if name not in _MARGINS)]
        self._by_sequence = by_sequence
        # Ranks add up what sequences have before anything is derived. A sequence's entropy is no sum over its
        # products, so that several ranks decompose where the call is seen, and wait for a GPU there.
        self._defers = world_size() == 1
        #: of each call, metrics and the products of its sequences
        self._products: dict[CallKey, list[tuple[tuple[str, ...], ScoreProducts]]] = {}
        #: sequences, the first ones, whose single scores are looked at
        self._limit = SCORED_SEQUENCES
        #: sequences of each call that were measured
        self._scored: dict[CallKey, int] = {}
        #: the same before the packed call whose documents are being shown
        self._scored_before: dict[CallKey, int] = {}

    def begins(self, key: CallKey) -> None:
        """Note that the parts of a call follow."""
        self._scored_before[key] = self._scored.get(key, 0)

    def score(self, sequences: int) -> None:
        """Look at the single scores of that many sequences of what runs from now on, and of no more."""
        self._limit = sequences
        self._scored = dict.fromkeys(self._scored, 0)  # the keys tell what is laid out

    def attention(self, layer: LayerSums, key: CallKey, call: AttentionCall) -> None:
        known = call.query is not None and call.key is not None
        names = tuple(
            name for name in self._by_sequence
            if not (spec_of(name).self_attention and (call.offset != 0 or call.lengths[1] != call.lengths[2]))
            and (known or reads_of(name) == ("attended",))
        )  # fmt: skip
        if call.portion is None:
            count = min(self._limit - self._scored.get(key, 0), call.lengths[0])
        else:  # documents come by length: the first ones may be in several batches
            left = self._limit - self._scored_before[key]
            count = sum(number < left for number in call.portion.numbers)
        if not names or (count <= 0 and key in self._scored):
            return
        count = max(count, 0)
        self._scored[key] = self._scored.get(key, 0) + count
        spectral = tuple(name for name in names if self._defers and products_of(name))
        names = tuple(name for name in names if name not in spectral)
        if names and not count:  # all ranks need the same layout
            none = torch.full((1, len(names), 1, layer.heads), torch.nan, device=call.device)
            add_values([layer], "scores", names, none)
        if not (spectral or count):
            return
        scores = observed_scores(call, count)
        if spectral:
            products = scores.score_products(dict.fromkeys(p for name in spectral for p in products_of(name)))
            self._products.setdefault(key, []).append((spectral, products))
        if names and count:
            parts = {name: (name.rpartition(".")[2],) if spec_of(name).parts else () for name in names}
            quantities = {"scores": scores, "attended": scores}
            shape = (count, layer.heads)
            values = torch.stack([self.value(name, quantities, shape, *parts[name]) for name in names])
            add_values([layer], "scores", names, values[None])

    def zero(self) -> None:
        self._scored.clear()
        self._scored_before.clear()
        for key, calls in self._products.items():
            self._products[key] = [(metrics, products.first_sequences(0)) for metrics, products in calls]

    def derive(self, stack: DerivedStack) -> None:
        """Count the heads of each gate."""
        counted = [
            (indices, name, metric_function(name)(torch.stack(margins), name.rpartition(".")[2]))
            for indices, margins in stack.means(_MARGINS)
            for name in self._counts
        ]
        for indices, name, counts in counted:
            stack.add(name, indices, counts)
        self._defer(stack)

    def _defer(self, stack: DerivedStack) -> None:
        """Let the host decompose the products of all layers' calls, those of one shape at once."""
        alike: dict[_Layout, list[tuple[int, ScoreProducts]]] = {}
        for index, key in stack.keys.items():
            for metrics, own in self._products.pop(key, ()):
                shapes = tuple((name, x.shape[1:]) for name, x in own.products.items())
                alike.setdefault((metrics, own.dtype, shapes), []).append((index, own))
        groups = [(layout, [(i, len(own)) for i, own in calls]) for layout, calls in alike.items()]

        def derive(copies: list[Tensor]) -> None:
            rest = iter(copies)
            by_place: dict[tuple[str, int], list[Tensor]] = {}
            for (metrics, dtype, shapes), calls in groups:
                products = {name: torch.cat([next(rest) for _ in calls]) for name, _ in shapes}
                scores, sizes = ScoreProducts(products, dtype), [size for _, size in calls]
                for metric in metrics:
                    values = self.value(metric, {"scores": scores}, ()).double()
                    for (index, _), own in zip(calls, values.split(sizes), strict=True):
                        by_place.setdefault((metric, index), []).append(own)
            for (metric, index), by_call in by_place.items():
                stack.add(metric, [index], torch.cat(by_call).nanmean(0, keepdim=True))

        if alike:
            tensors = [
                own.products[name]
                for (*_, shapes), calls in alike.items()
                for name, _ in shapes
                for _, own in calls
            ]
            stack.deferred.append((tensors, derive))
