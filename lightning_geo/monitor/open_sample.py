"""The sample in the making, which both strategies of the sampler fill."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lightning_geo.measurement.collectors.updates import Draw
from lightning_geo.measurement.narrowing import Narrowing
from lightning_geo.measurement.row_sampling import MaxQueries
from lightning_geo.measurement.sample import LayerChoice, Measurement
from lightning_geo.metrics.registry import reads_of
from lightning_geo.monitor.observed_models import ObservedModels
from lightning_geo.observe import CallKey
from lightning_geo.observe.module_selection import ITSELF, choose
from lightning_geo.observe.replay.dependence import NoDataError
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["OpenSample"]


class OpenSample:
    """Holds a sample's measurement, and what failed in it.

    Args:
        observed: The models that are measured.
        layers: See :class:`~lightning_geo.measurement.sample.Measurement`.
        rank: Dimensions of the subspaces.
        max_queries: See :class:`.AttentionRows`.
    """

    def __init__(
        self, observed: ObservedModels, layers: LayerChoice, rank: int, max_queries: MaxQueries
    ) -> None:
        self._observed = observed
        self._settings = (layers, rank, max_queries)
        self.measurement: Measurement | None = None
        #: stored names of the metrics that the sample measures; known until the next sample begins
        self.due: tuple[str, ...] = ()
        #: the first error outside the measurement
        self.failure: Exception | None = None
        #: whether the sample is taken on the probe
        self.replayed = False
        #: whether it keeps attention patterns, on this rank
        self.patterns = False
        #: models without a recorded call -> why
        self.unrecorded: dict[str, str] = {}
        #: models whose importance could not be measured -> why
        self.importance_failures: dict[str, Exception] = {}
        #: weights at the run's start by model: filled in by the first sample that measures their drift
        self.start: dict[str, dict[str, dict[str, Tensor]]] = {}
        #: by model, whether a call is one of ``layers``: filled in by samples, which number them
        self._known: dict[str, dict[CallKey, bool]] = {}
        #: weights drawn at the last sample by model and path; not in checkpoints
        self._drawn: dict[str, dict[str, Draw]] = {}
        #: pairs that masks left visible in the training forward, by model and call, for the next sample
        self.trained: dict[str, dict[CallKey, Tensor]] = {}
        #: by model, what the probe has shown of its layers
        self._narrowings = {name: Narrowing(tap) for name, tap in observed.taps.items()}

    def begin(self) -> Measurement:
        """Return a new measurement of the observed models and the metrics that are due."""
        taps, start, known = self._observed.taps, self.start, self._known
        narrowings = {name: self._narrowings[name] for name in taps} if self.replayed else None
        return Measurement(
            taps, self.due, *self._settings, start=start, known=known, drawn=self._drawn,
            trained=self.trained, narrowings=narrowings, timed=not self.replayed, patterns=self.patterns,
        )  # fmt: skip

    def close(self) -> Measurement | None:
        """Return the measurement, and let the next sample begin without failure."""
        measurement, self.measurement, self.failure = self.measurement, None, None
        return measurement

    def keep_failure(self, error: Exception) -> None:
        """Keep an error, unless there was one before."""
        self.failure = self.failure or error

    @property
    def weighs_heads(self) -> bool:
        """Whether the importance of heads is due."""
        return any("head_gradient" in reads_of(name) for name in self.due)

    def first_failure(self) -> Exception | None:
        """Return the first error since the sample began, or None."""
        if self.failure is not None or self.measurement is None:
            return self.failure
        return self.failure_in(self.measurement)

    def failure_in(self, measurement: Measurement) -> Exception | None:
        """Return a measurement's first error, or the reason why it has seen no attention."""
        if measurement.failures:
            return measurement.failures[0]
        if measurement.observed:
            return None
        because, names = self._observed.because, ", ".join(self._observed.names)
        if ITSELF in self.unrecorded and self.replayed:
            return NoDataError(because({ITSELF: self.unrecorded[ITSELF]}))
        if self.unrecorded:
            return LookupError(
                f"what was recorded shows no attention, and the rest was not. {because(self.unrecorded)}"
            )
        if measurement.reasons:
            return LookupError(f"all attention seen in {names} was left out, {measurement.reasons}")
        return LookupError(
            f"no attention was seen in {names}. {measurement.why_nothing()} Name the model with `module=`"
        )

    def choose_models(self, measurement: Measurement) -> list[str]:
        """Return the names of the models to observe from now on.

        Raises:
            NoDataError: If one that attends is given what depends on parameters, and nothing around it could
                be replayed.
        """
        models, root, seen = self._observed.models, self._observed.root, measurement.observed
        fed = sorted(self._observed.dependent() - {ITSELF}) if models.get(ITSELF) is root else []
        if any(self._attends(measurement, name) for name in fed):
            if ITSELF in seen:
                return [ITSELF]
            if self.replayed:
                reason = self.unrecorded.get(ITSELF, "no call of the LightningModule was recorded")
                reasons = dict.fromkeys(fed, "what it is given depends on parameters") | {ITSELF: reason}
                raise NoDataError(self._observed.because(reasons))
        # the root encloses its children, but is observed itself only where it was called
        return choose(name for name in seen if name != ITSELF or measurement.called(name)) or seen

    def _attends(self, measurement: Measurement, name: str) -> bool:
        if ITSELF in measurement.observed:
            return measurement.attends(ITSELF, name)
        return name in measurement.observed or self._observed.may_attend(name)

    def report_unrecorded(self, names: Iterable[str], warn_once: WarnOnce) -> None:
        """Warn of models that the record lacks because their calls could not be kept.

        Args:
            names: Of the models that are measured.
            warn_once: Takes the warning.
        """
        names = list(names)
        lacking = {}
        for name, reason in self.unrecorded.items():
            # a LightningModule that only passes on to its one child is no loss, nor is a loss function
            lost = len(names) > 1 if name == ITSELF else ITSELF not in names
            if lost and self._observed.may_attend(name):
                lacking[name] = reason
        if lacking:
            warn_once.warn(
                "its calls could not be recorded, so that the record lacks it, or measures its parts alone. "
                f"{self._observed.because(lacking)}"
            )
