"""Takes samples of the observed models, by replaying a probe or by observing the training forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from lightning_geo.kernels import retry_failed
from lightning_geo.measurement.assemble import Bases, Computed, SampleDerivation
from lightning_geo.measurement.importance import LossFunction, NoImportanceError
from lightning_geo.measurement.rank_reduction import Merged, reduce_over_ranks
from lightning_geo.measurement.row_sampling import MaxQueries
from lightning_geo.measurement.sample import LayerChoice, Measurement
from lightning_geo.monitor.absence_warnings import (
    report_gaps,
    report_importance,
    report_kept_weights,
    report_other_heads,
)
from lightning_geo.monitor.batch_observation import BatchObservation
from lightning_geo.monitor.observed_models import ObservedModels
from lightning_geo.monitor.open_sample import OpenSample
from lightning_geo.monitor.probe_replay import Context, ProbeReplay
from lightning_geo.monitor.training_masks import TrainingMasks
from lightning_geo.observe import Coverage
from lightning_geo.observe.replay.dependence import NoDataError
from lightning_geo.probe.probe import Share
from lightning_geo.utils.errors import call_all
from lightning_geo.utils.ranks import everyones, failure_of_any_rank, known_to_rank_zero
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Concluded", "Sampler"]


class Concluded(NamedTuple):
    """A sample of all ranks whose metrics are derived.

    Args:
        derivation: Its metrics on their way to the host.
        report: Warns of what they lack, once they are there, and returns what was seen and measured.
    """

    derivation: SampleDerivation
    report: Callable[[Computed], Coverage]


class Sampler:
    """Measures the same models again and again, and derives a sample's metrics over all ranks.

    Two strategies fill a sample: ``on_probe`` replays recorded calls, ``on_batch`` observes training.

    Args:
        candidates: Modules that may be observed by name; the first sample shows which do attend.
        layers: See :class:`~lightning_geo.measurement.sample.Measurement`.
        rank: Dimensions of the subspaces.
        special_token_ids: Input ids that count as special.
        max_queries: See :class:`.AttentionRows`.
        loss_fn: Loss that ``importance`` refers to; None for the model's own.
        forward_context: The trainer's precision.
        warn_once: Where failures go.
        root: The LightningModule that they are in; None if it does not matter.
        trained: The module that is trained, as the loop calls it; None if that is the model.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        layers: LayerChoice,
        rank: int,
        special_token_ids: Iterable[int] | None,
        max_queries: MaxQueries,
        loss_fn: LossFunction | None,
        forward_context: Context,
        warn_once: WarnOnce,
        root: nn.Module | None = None,
        trained: nn.Module | None = None,
    ) -> None:
        retry_failed()
        self.observed = ObservedModels(candidates, special_token_ids, root)
        self.sample = OpenSample(self.observed, layers, rank, max_queries)
        self.on_probe = ProbeReplay(self.observed, self.sample, loss_fn, forward_context, warn_once, trained)
        self.on_batch = BatchObservation(self.observed, self.sample, self.on_probe)
        self.training_masks = TrainingMasks(self.observed, self.sample, warn_once)
        self._warn_once = warn_once
        #: whether the last sample showed no attention at all
        self.saw_nothing = False
        #: whether the last sample was whole on all ranks; what failed after that, failed on this rank alone
        self.merged = False
        #: stacks of the last sample, see Computed
        self._structure: dict[str, Any] = {}

    def stop(self) -> None:
        """Remove all hooks from the models and their tensors; harmless when done twice."""
        call_all(self.on_batch.pause, self.on_batch.forget, self.training_masks.pause)

    def check_layers(self) -> None:
        """Raise if ``layers`` matches no attention call so far."""
        measurement = self.sample.measurement
        if measurement is not None and measurement.observed and self.sample.first_failure() is None:
            measurement.check_layers()

    def try_layers(self, share: Share) -> None:
        """Raise if ``layers`` matches no attention call of the recorded calls; measures nothing."""
        if self.on_probe.replay(share, ()) is None:  # a failure is reported when the sample is taken
            self.check_layers()

    def conclude(self, error: Exception | None, baseline: Bases | None, previous: Bases | None) -> Concluded:
        """Merge the sample over ranks and derive its metrics, without waiting for the device.

        Every rank calls this at every sample, whatever happened to it before.

        Args:
            error: An error on this rank, if there was one.
            baseline: Bases that ``drift`` is against; see :func:`lightning_geo.measurement.assemble.derive`.
            previous: Bases that ``velocity`` is against.

        Raises:
            Exception: ``error``, or that another rank dropped the sample.
        """
        measurement, names = self.sample.close(), list(self.observed.models)
        ran = error is None or isinstance(error, LookupError)
        self.merged = False
        self.saw_nothing = ran and measurement is not None and not measurement.observed
        try:
            if measurement is None:
                measurement = self.sample.begin()
            if error is None and not self.observed.settled:
                names = self._choose_models(measurement)
            self.on_batch.add_importance(measurement, names)
        except Exception as failure:
            error = failure
        finally:
            self.on_batch.forget()
        measurement = self._merged(measurement, error)
        failures = self._importance_failures(names)
        if not self.observed.settled:
            self.sample.report_unrecorded(names, self._warn_once)
        self.observed.settle(names)
        derivation = measurement.derive(baseline, previous)
        self.sample.trained = {}
        derivation.release()  # their values are on their way to the host
        return Concluded(derivation, partial(self._report, measurement, failures, self.sample.due))

    def _choose_models(self, measurement: Measurement) -> list[str]:
        """Choose the models of all samples, and reduce the first one to them."""
        names = self.sample.choose_models(measurement)
        if not names:  # there is nothing yet that `layers` could fail to match
            raise LookupError("nothing was observed")
        measurement.keep(names)
        measurement.check_layers()
        return names

    def _merged(self, measurement: Measurement | None, error: Exception | None) -> Measurement:
        """Add up a sample over all ranks, which meet here; raises on all of them unless it is whole."""
        device, merged = self.observed.device, Merged(False, False)
        try:
            if measurement is None or error is not None:
                reduce_over_ranks([], False, device)
            else:
                merged = measurement.reduce(device, self._warn_once.pending)
        except Exception as failure:
            error = failure
        if measurement is None or not merged.valid:
            reason = failure_of_any_rank(error)
            self._warn_once.exchange()
            # all ranks or none go on without a probe
            raise NoDataError(str(reason)) if any(everyones(isinstance(error, NoDataError))) else reason
        self.merged = True
        if merged.pending:
            self._warn_once.exchange()
        return measurement

    def _importance_failures(self, names: Iterable[str]) -> list[Exception] | None:
        """Collect the reasons of all ranks why importance is absent; every rank has to reach this call.

        None where it was not due.
        """
        if not self.sample.weighs_heads:
            return None
        failures = self.sample.importance_failures
        own = [failures[name] for name in names if name in failures]
        return own + _failures_elsewhere(own)

    def _report(
        self,
        measurement: Measurement,
        failures: list[Exception] | None,
        due: tuple[str, ...],
        computed: Computed,
    ) -> Coverage:
        """Warn of metrics and calls that the sample lacks, and return its coverage."""
        measurement.settle_masks()
        report_gaps(measurement, computed, due, self._warn_once)
        report_kept_weights(self.sample.start, self._warn_once)
        report_other_heads(self._structure, computed.structure, self._warn_once)
        self._structure = computed.structure
        if failures is not None:
            report_importance(failures, computed, self._warn_once)
        return measurement.coverage


def _failures_elsewhere(failures: list[Exception]) -> list[Exception]:
    """Collect other ranks' reasons why importance is absent, each once; every rank calls this."""
    own = [(isinstance(error, NoImportanceError), str(error)) for error in map(known_to_rank_zero, failures)]
    elsewhere: dict[tuple[bool, str], Exception] = {}
    for index, theirs in enumerate(everyones(own)):
        for known, text in theirs:
            if (known, text) not in own:
                error = NoImportanceError(text) if known else RuntimeError(f"rank {index}: {text}")
                elsewhere.setdefault((known, text), error)
    return list(elsewhere.values())
