"""Takes samples of the observed models, by replaying a probe or by observing the training forward."""

from __future__ import annotations

from lightning_geo.measurement.assemble import Bases, Computed
from lightning_geo.measurement.importance import NoImportanceError
from lightning_geo.measurement.rank_reduction import Merged, reduce_over_ranks
from lightning_geo.monitor.absence_warnings import (
    report_gaps,
    report_importance,
    report_kept_weights,
    report_other_heads,
)
from lightning_geo.monitor.batch_observation import BatchObservation
from lightning_geo.observe.replay.dependence import NoDataError
from lightning_geo.probe.probe import Share
from lightning_geo.utils.errors import call_all
from lightning_geo.utils.ranks import everyones, failure_of_any_rank, known_to_rank_zero

__all__ = ["Sampler"]


class Sampler(BatchObservation):
    """Measures the same models again and again, and derives a sample's metrics over all ranks.

    Its arguments are those of :class:`.ObservedModels`.
    """

    def stop(self) -> None:
        """Leave nothing behind in the models or in what they computed; harmless when done twice."""
        call_all(self.pause, self._forget)

    def check_layers(self) -> None:
        """Raise if ``layers`` matches nothing of what was seen so far."""
        if self._measurement is not None and self._measurement.observed and self.failure() is None:
            self._measurement.check_layers()

    def try_layers(self, share: Share) -> None:
        """Raise if ``layers`` matches nothing that runs on recorded calls; nothing is measured."""
        if self.replay(share, ()) is None:  # a failure is reported when the sample is taken
            self.check_layers()

    def failure(self) -> Exception | None:
        """Return the first error since the sample began, or None."""
        if self._failure is not None or self._measurement is None:
            return self._failure
        return self._first_failure(self._measurement)

    def conclude(self, error: Exception | None, baseline: Bases | None, previous: Bases | None) -> Computed:
        """Merge the sample over ranks and derive its metrics.

        Every rank calls this at every sample, whatever happened to it before.

        Args:
            error: What went wrong on this rank.
            baseline: Bases that ``drift`` is against; see :func:`lightning_geo.measurement.assemble.compute`.
            previous: Bases that ``velocity`` is against.

        Raises:
            Exception: ``error``, or that another rank dropped the sample.
        """
        measurement, self._measurement, self._failure = self._measurement, None, None
        names = list(self.models)
        ran = error is None or isinstance(error, LookupError)
        self.merged = False
        self.saw_nothing = ran and measurement is not None and not measurement.observed
        try:
            if measurement is None:
                measurement = self._begin()
            if error is None and not self._chosen:
                names = self._choose(measurement)
                if not names:  # there is nothing yet that `layers` could fail to match
                    raise LookupError("nothing was observed")
                measurement.keep(names)
                measurement.check_layers()
            self._add_training_importance(measurement, names)
        except Exception as failure:
            error = failure
        finally:
            self._forget()
        merged = Merged(False, False)
        try:
            if measurement is None or error is not None:
                reduce_over_ranks([], False, self.device)
            else:
                merged = measurement.reduce(self.device, self._warn_once.unsaid)
        except Exception as failure:
            error = failure
        if measurement is None or not merged.valid:
            reason = failure_of_any_rank(error)
            self._warn_once.exchange()
            # all ranks or none go on without a probe
            raise NoDataError(str(reason)) if any(everyones(isinstance(error, NoDataError))) else reason
        self.merged = True
        if merged.unsaid:
            self._warn_once.exchange()
        failures: list[Exception] = []
        if self._weighs_heads:  # now, since what follows may fail on one rank alone
            failures = [e for name in names if (e := self._importance_failures.get(name)) is not None]
            failures += _failures_elsewhere(failures)
        if not self._chosen:
            self._report_unrecorded(names)
        self.prefer(names)
        self._chosen = True
        computed = measurement.compute(baseline, previous)
        self.coverage = measurement.coverage
        report_gaps(measurement, computed, self._due, self._warn_once)
        report_kept_weights(self.start, self._warn_once)
        report_other_heads(self._structure, computed.structure, self._warn_once)
        self._structure = computed.structure
        if self._weighs_heads:
            report_importance(failures, computed, self._warn_once)
        return computed


def _failures_elsewhere(failures: list[Exception]) -> list[Exception]:
    """Why other ranks have no importance, each reason once; to be called on every rank."""
    here = [(isinstance(error, NoImportanceError), str(error)) for error in map(known_to_rank_zero, failures)]
    found: dict[tuple[bool, str], Exception] = {}
    for index, theirs in enumerate(everyones(here)):
        for known, text in theirs:
            if (known, text) not in here:
                error = NoImportanceError(text) if known else RuntimeError(f"rank {index}: {text}")
                found.setdefault((known, text), error)
    return list(found.values())
