"""Takes samples of the observed models, by replaying a probe or by watching the training forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.clock import seconds_on
from lightning_geo.compiled import compiles_attention
from lightning_geo.complaints import Complaints, let_go
from lightning_geo.compute import Bases, Computed
from lightning_geo.gaps import (
    by_reason,
    report_gaps,
    report_importance,
    report_kept_weights,
    report_other_heads,
)
from lightning_geo.importance import LossFunction, NoImportanceError, importances
from lightning_geo.kernels import retry_failed
from lightning_geo.measure import LayerChoice, Measurement, special_tokens
from lightning_geo.observed import ITSELF, choose
from lightning_geo.probe import Share, on_call
from lightning_geo.ranks import everyones, failure_of_any_rank
from lightning_geo.reduction import reduce_over_ranks
from lightning_geo.replay import Call, RandomState, device_of, has_fast_path, undisturbed
from lightning_geo.schema import spec_of
from lightning_geo.taps import Coverage, Tap, looks_like_attention, name_of
from lightning_geo.taps.training import begins_training
from lightning_geo.training_slopes import TrainingSlopes

__all__ = ["Sampler"]

#: Why training's backward says nothing of heads.
_COMPILED = (
    "the model is compiled, or may take PyTorch's fused path: training's backward shows no heads there"
)

Context = Callable[[], AbstractContextManager[object]]


class Sampler:
    """Measures the same models again and again.

    Args:
        candidates: Modules that may be observed by name; the first sample shows which do attend.
        layers: See :class:`~lightning_geo.measure.Measurement`.
        rank: Dimensions of the subspaces.
        special_token_ids: Input ids that count as special.
        max_queries: Query rows to measure per sequence; None for all.
        loss_fn: What ``importance`` is importance to; None for the model's own loss.
        forward_context: The trainer's precision.
        complaints: Where failures go.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        layers: LayerChoice,
        rank: int,
        special_token_ids: Iterable[int] | None,
        max_queries: int | None,
        loss_fn: LossFunction | None,
        forward_context: Context,
        complaints: Complaints,
    ) -> None:
        retry_failed()
        self._candidates = dict(candidates)
        #: those of them that are observed
        self.models = dict(candidates)
        self._taps = {
            n: Tap(model, special_tokens(model, special_token_ids)) for n, model in self.models.items()
        }
        self._settings = (layers, rank, max_queries)
        #: stored names of what the sample in the making measures
        self._due: tuple[str, ...] = ()
        #: weights at the run's start by model: filled in by the first sample that measures their drift
        self.start: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._loss_fn = loss_fn
        self._forward_context = forward_context
        self._complaints = complaints
        self._chosen = False
        self._measurement: Measurement | None = None
        self._failure: Exception | None = None
        #: what hears training's backward by model, where importance is measured so
        self._slopes: dict[str, TrainingSlopes] = {}
        #: stacks of the last sample, see Computed
        self._structure: dict[str, Any] = {}
        #: why a model's importance could not be measured, by name
        self._importance_failures: dict[str, Exception] = {}
        #: models of which the probe has no call -> why
        self._unrecorded: dict[str, str] = {}
        #: what the last sample saw of attention, over all ranks
        self.coverage = Coverage()
        self._watching = contextlib.ExitStack()
        self._shadows: list[tuple[str, Call, RandomState]] = []
        self._shadow_seconds = 0.0

    def prefer(self, names: Iterable[str]) -> None:
        """Observe these alone, if they are there: an earlier session chose them."""
        names = list(names)
        if names and set(names) <= set(self.models):
            self.models = {name: self.models[name] for name in names}

    @property
    def due(self) -> tuple[str, ...]:
        """Stored names of what the last sample was to measure."""
        return self._due

    @property
    def names(self) -> list[str]:
        """Names of the models for a person: the LightningModule itself, or ``module=``, goes by its class."""
        return [name_of(name, model) for name, model in self.models.items()]

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return device_of(next(iter(self.models.values())))

    # -- source "probe"

    def replay(
        self, share: Share, metrics: tuple[str, ...], unrecorded: Mapping[str, str] | None = None
    ) -> Exception | None:
        """Measure the models on recorded calls; returns what went wrong.

        Args:
            share: On the models' device.
            metrics: Stored names of those that are due.
            unrecorded: Models of which no call could be recorded -> why.
        """
        self._due, self._unrecorded = metrics, dict(unrecorded or {})
        try:
            measurement = self._measurement = self._begin()
            for calls in (share.uncounted, share.calls):
                measurement.discard_values()
                for name in self.models:
                    mine = [(recorded.call, 0) for recorded in calls if recorded.model == name]
                    self._run(measurement, name, mine)
            if self._weighs_heads:
                self._add_importance(measurement, share)
        except Exception as error:
            return let_go(error)
        return self._first_failure(measurement)

    def _add_importance(self, measurement: Measurement, share: Share) -> None:
        """A failure costs the importance, not the sample: other ranks may have succeeded."""
        self._importance_failures = {}
        for name, model in self.models.items():
            found = []
            try:
                calls = [recorded for recorded in share.calls if recorded.model == name]
                found = importances(model, calls, self._loss_fn, self._forward_context)
            except Exception as error:
                self._importance_failures[name] = let_go(error)
            measurement.add_importance(found, self.device, name)

    def _run(
        self,
        measurement: Measurement,
        name: str,
        calls: Sequence[tuple[Call, int | RandomState]],
        *,
        evaluate: bool = True,
    ) -> None:
        """Run calls of one model, each from where its random numbers start; hooks are installed once."""
        if not calls:
            return
        model = self.models[name]
        with measurement.observe(name, replays=True):
            for call, start in calls:
                with undisturbed(model, evaluate=evaluate, start=start), self._forward_context():
                    call.run(model)

    # -- source "batch"

    def watch(self, metrics: tuple[str, ...] | None = None) -> None:
        """Observe what the models compute from now on.

        What goes wrong is kept for the sample's end, which every rank has to reach.

        Args:
            metrics: Stored names of those that are due in a new sample; None for more of the last one.
        """
        self.pause()
        try:
            if metrics is not None or self._measurement is None:
                self._forget()
                self._importance_failures = {}
                self._due = self._due if metrics is None else metrics
                self._failure, self._measurement, self._shadow_seconds = None, self._begin(), 0.0
            shadowed = any(
                compiles_attention(model) or has_fast_path(model) for model in self.models.values()
            )
            for name, model in self.models.items():
                if shadowed:
                    self._watching.callback(on_call(model, self._shadow(name)))
                    self._importance_failures[name] = NoImportanceError(_COMPILED)
                    continue
                slopes = self._slopes.setdefault(name, TrainingSlopes()) if self._weighs_heads else None
                if slopes is not None:
                    self._watching.callback(on_call(model, slopes.begins))
                self._watching.enter_context(self._measurement.observe(name, slopes, training=True))
        except Exception as error:
            self._failure = self._failure or let_go(error)
            self.pause()

    def _shadow(self, name: str) -> Callable[..., None]:
        def keep(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            try:
                if not begins_training():
                    if self._measurement is not None:
                        self._measurement.pass_over(name)
                    return
                start = RandomState.now(self.device)
                # as they are now: the forward that begins may make a cache longer
                self._shadows.append((name, Call(args, kwargs).map(Tensor.detach).independent(), start))
            except Exception as error:  # the model is running: it is not to see this
                self._failure = let_go(error)

        return keep

    def pause(self) -> None:
        """Stop observing; harmless when done twice."""
        self._watching.close()

    def differentiates(self, factor: float | Tensor | None) -> None:
        """A backward of training's begins, from a loss times ``factor``; or has ended, without one."""
        for slopes in self._slopes.values():
            slopes.factor = factor

    def stop(self) -> None:
        """Leave nothing behind in the models or in what they computed; harmless when done twice."""
        self.pause()
        self._forget()

    def _add_what_was_heard(self, measurement: Measurement, names: Iterable[str]) -> None:
        """Of training's own backward; again, a failure costs the importance alone."""
        names = list(names)
        for name in (name for name in names if name in self._slopes):
            slopes, found = self._slopes[name], []
            try:
                found = list(slopes.importances())
                if slopes.absences:
                    prefix = name if len(names) > 1 else ""
                    absences = {
                        name_of(module, self.models[name], prefix): reason
                        for module, reason in slopes.absences.items()
                    }
                    self._importance_failures[name] = NoImportanceError(by_reason(absences))
            except Exception as error:
                self._importance_failures[name] = let_go(error)
            measurement.add_importance(found, self.device, name)

    def _forget(self) -> None:
        for slopes in self._slopes.values():
            slopes.close()
        self._slopes.clear()

    def run_shadows(self) -> None:
        """What shows nothing of its attention runs once more on what it was given, eagerly.

        Before the optimizer changes the weights, but after backward, which may need the buffers as they are.
        """
        shadows, self._shadows = self._shadows, []
        if not shadows:
            return
        started = seconds_on(self.device)
        try:
            for name in self.models:
                mine = [(call, start) for owner, call, start in shadows if owner == name]
                if self._failure is None and self._measurement is not None:
                    self._run(self._measurement, name, mine, evaluate=False)
        except Exception as error:
            self._failure = let_go(error)
        self._shadow_seconds += seconds_on(self.device) - started

    @property
    def seconds(self) -> float:
        """What observing the sample has cost so far."""
        return self._shadow_seconds or (0.0 if self._measurement is None else self._measurement.seconds)

    def check_layers(self) -> None:
        """Raise if ``layers`` matches nothing of what was seen so far."""
        if self._measurement is not None and self._measurement.observed and self.failure() is None:
            self._measurement.check_layers()

    def try_layers(self, share: Share) -> None:
        """Raise if ``layers`` matches nothing that runs on recorded calls; nothing is measured."""
        if self.replay(share, ()) is None:  # what cannot run is said when it is sampled
            self.check_layers()

    def failure(self) -> Exception | None:
        """What went wrong since the sample began."""
        if self._failure is not None or self._measurement is None:
            return self._failure
        return self._first_failure(self._measurement)

    # -- both

    def _begin(self) -> Measurement:
        taps = {name: self._taps[name] for name in self.models}
        return Measurement(taps, self._due, *self._settings, start=self.start)

    @property
    def _weighs_heads(self) -> bool:
        return any(spec_of(name).kind == "slopes" for name in self._due)

    def _first_failure(self, measurement: Measurement) -> Exception | None:
        if measurement.failures:
            return measurement.failures[0]
        if not measurement.observed:
            names = ", ".join(self.names)
            if self._unrecorded:
                because = self.because(self._unrecorded)
                return LookupError(f"what was recorded shows no attention, and the rest was not. {because}")
            if measurement.reasons:
                return LookupError(f"all attention seen in {names} was left out, {measurement.reasons}")
            return LookupError(
                f"no attention was seen in {names}. {measurement.why_nothing()} Name the model with `module=`"
            )
        return None

    def because(self, reasons: Mapping[str, str]) -> str:
        """Name models and the reason of each, for a person."""
        named = ((name_of(name, self._candidates[name]), reason) for name, reason in reasons.items())
        return "; ".join(f"{name}: {reason}" for name, reason in named)

    def _report_unrecorded(self, names: Iterable[str]) -> None:
        """Say which models the record lacks because their calls could not be kept."""
        names = list(names)
        lacking = {}
        for name, reason in self._unrecorded.items():
            # a LightningModule that only passes on to its one child is no loss, nor is a loss function
            lost = len(names) > 1 if name == ITSELF else ITSELF not in names
            if lost and any(looks_like_attention(m) for m in self._candidates[name].modules()):
                lacking[name] = reason
        if lacking:
            said = "its calls could not be recorded, so that the record lacks it, or measures its parts alone"
            self._complaints.say(f"{said}. {self.because(lacking)}")

    def conclude(self, error: Exception | None, baseline: Bases | None, previous: Bases | None) -> Computed:
        """Merge the sample over ranks and derive its metrics.

        Every rank calls this at every sample, whatever happened to it before.

        Args:
            error: What went wrong on this rank.
            baseline: Bases that ``drift`` is against; see :func:`lightning_geo.compute.compute`.
            previous: Bases that ``velocity`` is against.

        Raises:
            Exception: ``error``, or that another rank dropped the sample.
        """
        measurement, self._measurement, self._failure = self._measurement, None, None
        names = list(self.models)
        try:
            if measurement is None:
                measurement = self._begin()
            if error is None and not self._chosen:
                # the root encloses its children, but is observed itself only where it was called
                names = choose(n for n in measurement.observed if n != ITSELF or measurement.called(n))
                names = names or measurement.observed
                if not names:  # there is nothing yet that `layers` could fail to match
                    raise LookupError("nothing was observed")
                measurement.keep(names)
                measurement.check_layers()
            self._add_what_was_heard(measurement, names)
        except Exception as failure:
            error = failure
        finally:
            self._forget()
        whole = False
        try:
            if measurement is None or error is not None:
                reduce_over_ranks([], False, self.device)
            else:
                whole = measurement.reduce(True, self.device)
        except Exception as failure:
            error = failure
        if measurement is None or not whole:
            raise failure_of_any_rank(error)
        if not self._chosen:
            self._report_unrecorded(names)
        self.prefer(names)
        self._chosen = True
        computed = measurement.compute(baseline, previous)
        self.coverage = measurement.coverage
        report_gaps(measurement, computed, self._due, self._complaints)
        report_kept_weights(self.start, self._complaints)
        report_other_heads(self._structure, computed.structure, self._complaints)
        self._structure = computed.structure
        if self._weighs_heads:
            failures = [e for name in names if (e := self._importance_failures.get(name)) is not None]
            report_importance(failures + _failures_elsewhere(failures), computed, self._complaints)
        return computed


def _failures_elsewhere(failures: list[Exception]) -> list[Exception]:
    """Why other ranks have no importance, each reason once; to be called on every rank."""
    here = [(isinstance(error, NoImportanceError), str(error)) for error in failures]
    found: dict[tuple[bool, str], Exception] = {}
    for index, theirs in enumerate(everyones(here)):
        for known, text in theirs:
            if (known, text) not in here:
                error = NoImportanceError(text) if known else RuntimeError(f"rank {index}: {text}")
                found.setdefault((known, text), error)
    return list(found.values())
