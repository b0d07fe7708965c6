"""One sample of one or several models: what is observed, and the metrics derived from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lightning_geo.kernels.workspace import reuse_scratch
from lightning_geo.measurement.assemble import Bases, Computed, SampleDerivation, derive
from lightning_geo.measurement.chosen_layers import ChosenLayers, LayerChoice, no_match, not_measured
from lightning_geo.measurement.collectors.updates import Draw
from lightning_geo.measurement.narrowing import Narrowing
from lightning_geo.measurement.observed_calls import ObservedCalls
from lightning_geo.measurement.rank_reduction import Merged, reduce_over_ranks
from lightning_geo.measurement.row_sampling import MaxQueries
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.measurement.training_importance import TrainingGradients
from lightning_geo.observe import CallKey, LayerNumbering, Tap, number_layers
from lightning_geo.utils._torch import leader_of

__all__ = ["LayerChoice", "Measurement"]


class Measurement(ObservedCalls):
    """One sample of one or several observed models.

    Args:
        taps: Taps of the observed models by name; several put their names before those of their stacks.
        metrics: Stored names, as :func:`lightning_geo.metrics.selection.select` returns them.
        layers: Layer indices, or a regular expression on the paths of attention modules.
        rank: Dimensions of the subspaces.
        max_queries: See :class:`.AttentionRows`.
        start: Weights at the run's start by model, see :class:`.SampleStatistics`.
        known: By model, whether earlier samples have reported a call, see :class:`.ChosenLayers`; filled in.
        drawn: Weights drawn at the sample before by model, see :class:`.Updates`; replaced.
        trained: By model, see :class:`.Visibility`.
        narrowings: By model, what fixed inputs have shown of its layers.
        timed: Whether to time what observing takes.
        patterns: Whether to keep attention patterns, see :class:`.Patterns`.
    """

    def __init__(
        self,
        taps: Mapping[str, Tap],
        metrics: tuple[str, ...],
        layers: LayerChoice = None,
        rank: int = 8,
        max_queries: MaxQueries = None,
        start: dict[str, dict[str, dict[str, Tensor]]] | None = None,
        known: dict[str, dict[CallKey, bool]] | None = None,
        drawn: dict[str, dict[str, Draw]] | None = None,
        trained: Mapping[str, Mapping[CallKey, Tensor]] | None = None,
        narrowings: Mapping[str, Narrowing] | None = None,
        timed: bool = True,
        patterns: bool = False,
    ) -> None:
        self._metrics = metrics
        self._layers = layers
        self._rank = rank
        start = {} if start is None else start
        known = {} if known is None else known
        drawn = {} if drawn is None else drawn
        choices = {
            name: ChosenLayers(layers, name, tap.modules, known.setdefault(name, {}))
            for name, tap in taps.items()
        }
        sums: dict[str, SampleStatistics] = {}
        for name, tap in taps.items():
            own = start.setdefault(name, {}), choices[name].asks, partial(getattr, tap, "modules")
            weights, pairs = drawn.setdefault(name, {}), (trained or {}).get(name)
            leader = leader_of(tap.modules[""])
            # layers that are not reported are not measured
            calls = sum(known[name].values()) or None
            sums[name] = SampleStatistics(
                metrics, max_queries, name, *own, weights, pairs, patterns, leader, calls
            )
        super().__init__(taps, choices, sums)
        self._narrowings = {} if narrowings is None or layers is None else dict(narrowings)
        for name, tap in taps.items():
            tap.begin_sample(self._choices[name].asks, timed=timed)
        for name, narrowing in self._narrowings.items():
            self._taps[name] = narrowing.begin(self._statistics[name], self._choices[name].asks)

    @contextmanager
    def observe(
        self,
        name: str = "",
        gradients: TrainingGradients | None = None,
        *,
        training: bool = False,
        replays: bool = False,
        twin: nn.Module | None = None,
    ) -> Iterator[Tap]:
        """Observe what the model of that name computes inside the context.

        Args:
            name: The model's.
            slopes: Receives the gradients of training's own backward pass.
            training: Whether calls count only where they are part of training.
            replays: Whether replays that begin inside belong to it, rather than what runs between them.
            twin: A copy of the model that runs in its place.
        """
        statistics, observed = self._statistics[name], self._narrowings.get(name, self._taps[name])
        statistics.gradient_hook = None if gradients is None else gradients.hook
        with reuse_scratch(), observed.open(statistics, training=training, replays=replays, twin=twin) as tap:
            yield tap

    def add_importance(
        self, by_sequence: Iterable[Mapping[CallKey, Tensor]], device: torch.device, name: str = ""
    ) -> None:
        """Count importance for the model of that name, which was observed before.

        Args:
            by_sequence: [sequence, head] by attention call; nothing on a rank that has no sequence.
            device: The model's.
            name: The model's.
        """
        self._statistics[name].expect_importance(device)
        for by_call in by_sequence:
            self._statistics[name].importance(by_call)

    @property
    def observed(self) -> list[str]:
        """Names of the models that showed attention."""
        return [name for name, statistics in self._statistics.items() if statistics.layers]

    def score(self, name: str, sequences: int) -> None:
        """Take metrics of single scores from that many more sequences, the first ones of what runs next."""
        self._statistics[name].score(sequences)

    def attends(self, name: str, path: str) -> bool:
        """Whether a module of that model showed attention, or one in it."""
        return any(f"{key.module}.".startswith(f"{path}.") for key in self._statistics[name].layers)

    def called(self, name: str) -> bool:
        """Whether that model itself was called, not modules in it alone."""
        return self._taps[name].called

    def keep(self, names: Sequence[str]) -> None:
        """Forget the other models."""
        self._statistics = {name: self._statistics[name] for name in names}
        self._taps = {name: self._taps[name] for name in names}

    def reduce(self, device: torch.device, pending: int = 0) -> Merged:
        """Merge over ranks; see :func:`.reduce_over_ranks`."""
        self._merged = self.coverage
        for statistics in self._statistics.values():
            statistics.void_failures()
        return reduce_over_ranks(list(self._statistics.values()), True, device, self._merged, pending)

    def discard_values(self) -> None:
        """Keep the numbering but count nothing: what a rank without inputs brings to the sum."""
        for statistics in self._statistics.values():
            statistics.zero()
        for tap in self._taps.values():
            tap.coverage.seen = tap.coverage.measured = 0

    def derive(self, baseline: Bases | None = None, previous: Bases | None = None) -> SampleDerivation:
        """Derive all metrics; see :func:`lightning_geo.measurement.assemble.derive`."""
        numberings, parts = self._numberings(), []
        if missed := self._learn(numberings):
            raise not_measured(missed)
        for name, numbering in numberings.items():
            if len(self._statistics) > 1:
                numbering = numbering.of_model(name)
            sums, reports = self._statistics[name], self._choices[name].reports(numbering)
            with reuse_scratch():
                part = derive(sums, numbering, self._metrics, self._rank, reports, baseline, previous)
            parts.append((self._prefix(name), part))
        return SampleDerivation(parts)

    def settle_masks(self) -> None:
        """Withdraw calls whose masks were not as assumed, which is known when the metrics are there."""
        for name, tap in self._taps.items():
            withdrawn = [self._named(name, path) for path in tap.settle_masks()]
            if self._merged is not None:
                self._merged.withdraw(withdrawn)

    def compute(self, baseline: Bases | None = None, previous: Bases | None = None) -> Computed:
        """Derive all metrics, and wait for them."""
        computed = self.derive(baseline, previous).finish()
        self.settle_masks()
        return computed

    def _numberings(self) -> dict[str, LayerNumbering]:
        return {
            name: number_layers(s.layers, self._taps[name].modules) for name, s in self._statistics.items()
        }

    def _learn(self, numberings: Mapping[str, LayerNumbering]) -> list[str]:
        """Let all models know which layers are reported: ranks must go on alike if one model then fails."""
        missed = {name: self._choices[name].learn(numbering) for name, numbering in numberings.items()}
        for name in numberings.keys() & self._narrowings.keys():
            self._narrowings[name].learn(self._statistics[name].layers, self._choices[name].has_reported)
        return [self._named(name, path) for name, paths in missed.items() for path in paths]

    def learn_layers(self) -> bool:
        """Whether every layer that is reported was measured; if not, the next measurement does so."""
        return not self._learn(self._numberings())

    def asks(self, name: str) -> Callable[[CallKey], bool]:
        """Return whether a call of the model of that name is to be measured."""
        return self._choices[name].asks

    def measures(self, name: str) -> bool:
        """Whether any call of that model was to be measured."""
        return any(map(self.asks(name), self._statistics[name].layers))

    def check_layers(self) -> None:
        """Raise if ``layers`` matches no attention call that was seen.

        Raises:
            SettingError: With what there is to match.
        """
        numberings = self._numberings()
        calls = [(name, key) for name, numbering in numberings.items() for key in numbering.layers]
        if not any(self._choices[name].reports(numberings[name])(key) for name, key in calls):
            modules = sorted({self._named(name, key.module) for name, key in calls})
            raise no_match(self._layers, numberings.values(), modules)
