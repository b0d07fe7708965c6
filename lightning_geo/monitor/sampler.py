"""Takes samples of the observed models, by replaying a probe or by watching the training forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.kernels import retry_failed
from lightning_geo.measurement.assemble import Bases, Computed
from lightning_geo.measurement.importance import LossFunction, NoImportanceError, importances
from lightning_geo.measurement.rank_reduction import Merged, reduce_over_ranks
from lightning_geo.measurement.sample import LayerChoice, Measurement, special_tokens
from lightning_geo.measurement.training_importance import TrainingGradients
from lightning_geo.metrics.selection import spec_of
from lightning_geo.monitor.absence_warnings import (
    by_reason,
    report_gaps,
    report_importance,
    report_kept_weights,
    report_other_heads,
)
from lightning_geo.observe import Coverage, Tap, looks_like_attention, name_of
from lightning_geo.observe.module_selection import ITSELF, choose
from lightning_geo.observe.replay.call_hooks import on_call
from lightning_geo.observe.replay.dependence import Dependence, NoDataError
from lightning_geo.observe.replay.replica import Replica
from lightning_geo.observe.replay.torch_compile import compiles_attention
from lightning_geo.observe.replay.undisturbed import Call, RandomState, device_of, has_fast_path
from lightning_geo.observe.training_calls import begins_training
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.division import divides
from lightning_geo.probe.probe import Share
from lightning_geo.utils.device_time import seconds_on
from lightning_geo.utils.errors import call_all, let_go
from lightning_geo.utils.ranks import everyones, failure_of_any_rank, known_to_rank_zero
from lightning_geo.utils.warn_once import Complaints

__all__ = ["Sampler"]

#: Why training's backward says nothing of heads.
_COMPILED = (
    "the model is compiled, or may take PyTorch's fused path: training's backward shows no heads there"
)

Context = Callable[[], AbstractContextManager[object]]

#: Calls; where random numbers start in each, a seed or an earlier state; how many sequences have their
#: single scores measured, None where the whole sample has a number of them.
Calls = Sequence[tuple[Call, int | RandomState, int | None]]


class Sampler:
    """Measures the same models again and again.

    Args:
        candidates: Modules that may be observed by name; the first sample shows which do attend.
        layers: See :class:`~lightning_geo.measurement.sample.Measurement`.
        rank: Dimensions of the subspaces.
        special_token_ids: Input ids that count as special.
        max_queries: Query rows to measure per sequence; None for all.
        loss_fn: What ``importance`` is importance to; None for the model's own loss.
        forward_context: The trainer's precision.
        complaints: Where failures go.
        root: The LightningModule that they are in; None if it does not matter.
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
        root: nn.Module | None = None,
    ) -> None:
        retry_failed()
        self._candidates = dict(candidates)
        self.root = root
        #: what tells calls that are given data from others
        self.dependence = None if root is None else Dependence(root, candidates)
        #: those of them that are observed
        self.models = dict(candidates)
        self._taps = {
            n: Tap(model, special_tokens(model, special_token_ids)) for n, model in self.models.items()
        }
        self._replicas = {n: Replica(model, n, complaints) for n, model in self.models.items()}
        #: of the LightningModule, whose own calls are replayed where a model's do not begin at the data
        self._outside: Replica | None = None
        self._paths: dict[str, str] = {}
        if root is not None:
            own = next((r for n, r in self._replicas.items() if self.models[n] is root), None)
            self._outside = Replica(root, "", complaints) if own is None else own
            paths = {id(module): path for path, module in root.named_modules()}
            self._paths = {name: paths.get(id(model), "") for name, model in self.models.items()}
        #: models of which the probe holds calls of their own
        self._called: set[str] = set()
        self._settings = (layers, rank, max_queries)
        #: stored names of what the sample in the making measures
        self._due: tuple[str, ...] = ()
        #: weights at the run's start by model: filled in by the first sample that measures their drift
        self.start: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._loss_fn = loss_fn
        self._forward_context = forward_context
        self._complaints = complaints
        self._chosen = False
        #: whether the last sample showed no attention at all
        self.saw_nothing = False
        #: whether the last sample was whole on all ranks; what failed after that, failed on this rank alone
        self.merged = False
        self._replaying = False
        self._measurement: Measurement | None = None
        self._failure: Exception | None = None
        #: what hears training's backward by model, where importance is measured so
        self._slopes: dict[str, TrainingGradients] = {}
        #: stacks of the last sample, see Computed
        self._structure: dict[str, Any] = {}
        #: why a model's importance could not be measured, by name
        self._importance_failures: dict[str, Exception] = {}
        #: models of which the probe has no call -> why
        self._unrecorded: dict[str, str] = {}
        #: the same, before it is known whether a call of the LightningModule shows them
        self._lacking: dict[str, str] = {}
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
        self._due, self._replaying = metrics, True
        self._lacking = dict(unrecorded or {})
        try:
            measurement = self._measurement = self._begin()
            recorded_calls = (*share.uncounted, *share.calls)
            # a call of the LightningModule shows them all
            outside = any(recorded.call.method for recorded in recorded_calls)
            self._unrecorded = {} if outside else self._lacking
            self._called = {recorded.model for recorded in recorded_calls if not recorded.call.method}
            for calls in (share.uncounted, share.calls):
                measurement.discard_values()
                for name in self.models:
                    mine = [r for r in calls if r.model == name and not r.call.method]
                    self._run(measurement, [name], _replayed(mine))
                self._replay_outside(measurement, _replayed(r for r in calls if r.call.method))
            if self._weighs_heads:
                self._add_importance(measurement, share)
        except Exception as error:
            return let_go(error)
        return self._first_failure(measurement)

    def _replay_outside(self, measurement: Measurement, calls: Calls) -> None:
        """Run the LightningModule's calls; until models are chosen a step that needs its trainer may fail."""
        try:
            self._run(measurement, self._uncalled, calls)
        except Exception as error:
            if self._chosen:
                raise
            method = calls[0][0].method
            reason = f"{type(error).__name__}: {error} (in a replay of its {method})"
            self._unrecorded = self._lacking | {ITSELF: reason}

    @property
    def _uncalled(self) -> list[str]:
        """The models that the LightningModule's calls show: those that have no calls of their own."""
        return [name for name in self.models if name not in self._called]

    def _shown_by(self, recorded: ProbeCall) -> list[str]:
        """The models that a call shows."""
        return self._uncalled if recorded.call.method else [recorded.model]

    def _together(self, calls: list[ProbeCall]) -> list[list[ProbeCall]]:
        """Those of one model's calls that the same copy may run, one after the other."""
        reusable = bool(calls) and self._stand_in(calls[0].call, calls[0].model).reusable
        return [calls] if reusable else [[call] for call in calls]

    def _stand_in(self, call: Call, name: str) -> Replica:
        """What is replayed: the model, or the LightningModule that it is in."""
        replica = self._outside if call.method else self._replicas[name]
        assert replica is not None
        return replica

    def _observed(self, ran: nn.Module, call: Call, name: str) -> nn.Module:
        """The model in what is replayed."""
        return ran.get_submodule(self._paths[name]) if call.method else ran

    def divides(self, recorded: ProbeCall) -> bool:
        """Whether the first axis of a call holds sequences; see :mod:`~lightning_geo.probe.division`."""
        call = recorded.to(self.device)
        return divides(self._stand_in(call.call, call.model), call, self._forward_context)

    def remember(self) -> None:
        """Keep what the step that begins is entered with, for a sample that is taken at its end."""
        for replica in self._everyone():
            replica.remember()

    def forget(self) -> None:
        """Replay the models as they are."""
        for replica in self._everyone():
            replica.forget()

    def _everyone(self) -> list[Replica]:
        outside = [] if self._outside is None else [self._outside]
        return list(dict.fromkeys([*(self._replicas[name] for name in self.models), *outside]))

    def _add_importance(self, measurement: Measurement, share: Share) -> None:
        """A failure costs the importance, not the sample: other ranks may have succeeded."""
        self._importance_failures = {}
        for name in self.models:
            found, parts = [], []
            try:
                for calls in self._together([r for r in share.calls if name in self._shown_by(r)]):
                    replica = self._stand_in(calls[0].call, name)
                    with replica.running() as model:
                        seen = self._observed(model, calls[0].call, name)
                        loss_fn, context = self._loss_fn, self._forward_context
                        parts += importances(model, calls, loss_fn, context, seen, replica.once)
                found = parts
            except Exception as error:
                self._importance_failures[name] = let_go(error)
            measurement.add_importance(found, self.device, name)

    def _run(
        self,
        measurement: Measurement,
        names: list[str],
        calls: Calls,
        *,
        evaluate: bool = True,
    ) -> None:
        """Run calls that show these models, each from where its random numbers start.

        Hooks are installed once for all of them, or for each where the model remembers its calls.
        """
        if not names or not calls:
            return
        first = calls[0][0]
        replica = self._stand_in(first, names[0])
        replica.try_out(first.run, self._forward_context)
        # what a step computes with gradients off is no part of training, as in source "batch"
        step = first.method not in ("", "forward")
        for group in [calls] if replica.reusable else [[call] for call in calls]:
            with replica.running() as model, contextlib.ExitStack() as stack:
                for name in names:
                    twin = self._observed(model, first, name)
                    stack.enter_context(measurement.observe(name, training=step, replays=True, twin=twin))
                for call, start, scored in group:
                    options: dict[str, Any] = {"evaluate": evaluate, "start": start}
                    if scored is not None:
                        for name in names:
                            measurement.score(name, scored)
                    with (
                        replica.once(model, gradient=step, frozen=step, **options),
                        self._forward_context(),
                    ):
                        call.run(model)

    # -- source "batch"

    def watch(self, metrics: tuple[str, ...] | None = None) -> None:
        """Observe what the models compute from now on.

        What goes wrong is kept for the sample's end, which every rank has to reach.

        Args:
            metrics: Stored names of those that are due in a new sample; None for more of the last one.
        """
        self._replaying = False
        try:
            self.pause()
            if metrics is not None or self._measurement is None:
                self._forget()
                self._importance_failures = {}
                self._due = self._due if metrics is None else metrics
                self._failure, self._measurement, self._shadow_seconds = None, self._begin(), 0.0
            shadowed = any(
                compiles_attention(model) or has_fast_path(model) for model in self.models.values()
            )
            if self.dependence is not None and not self._chosen:
                for undo in self.dependence.listen():
                    self._watching.callback(undo)
            for name, model in self.models.items():
                if self.dependence is not None and not self._chosen:
                    self._watching.callback(on_call(model, self.dependence.noting(name)))
                if shadowed:
                    self._watching.callback(on_call(model, self._shadow(name)))
                    self._importance_failures[name] = NoImportanceError(_COMPILED)
                    continue
                slopes = self._slopes.setdefault(name, TrainingGradients()) if self._weighs_heads else None
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

    def spoil(self, error: Exception) -> None:
        """Keep what went wrong while training was observed: it costs the sample, on every rank."""
        self._failure = self._failure or let_go(error)

    def differentiates(self, factor: float | Tensor | None) -> None:
        """A backward of training's begins, from a loss times ``factor``; or has ended, without one."""
        for slopes in self._slopes.values():
            slopes.factor = factor

    def stop(self) -> None:
        """Leave nothing behind in the models or in what they computed; harmless when done twice."""
        call_all(self.pause, self._forget)

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
                mine: Calls = [(call, start, None) for owner, call, start in shadows if owner == name]
                if self._failure is None and self._measurement is not None:
                    self._run(self._measurement, [name], mine, evaluate=False)
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

    def _choose(self, measurement: Measurement) -> list[str]:
        """The models that are observed from now on.

        Raises:
            NoDataError: If one that attends is given what depends on parameters, and nothing around it could
                be replayed.
        """
        observed = measurement.observed
        found = set() if self.dependence is None else self.dependence.found & self.models.keys()
        fed = sorted(found - {ITSELF}) if self.models.get(ITSELF) is self.root else []
        if any(self._attends(measurement, name) for name in fed):
            if ITSELF in observed:
                return [ITSELF]
            if self._replaying:
                reason = self._unrecorded.get(ITSELF, "no call of the LightningModule was recorded")
                reasons = dict.fromkeys(fed, "what it is given depends on parameters") | {ITSELF: reason}
                raise NoDataError(self.because(reasons))
        # the root encloses its children, but is observed itself only where it was called
        return choose(n for n in observed if n != ITSELF or measurement.called(n)) or observed

    def _attends(self, measurement: Measurement, name: str) -> bool:
        if ITSELF in measurement.observed:
            return measurement.attends(ITSELF, name)
        return name in measurement.observed or any(
            looks_like_attention(m) for m in self._candidates[name].modules()
        )

    @property
    def _weighs_heads(self) -> bool:
        return any(spec_of(name).kind == "slopes" for name in self._due)

    def _first_failure(self, measurement: Measurement) -> Exception | None:
        if measurement.failures:
            return measurement.failures[0]
        if not measurement.observed:
            names = ", ".join(self.names)
            if ITSELF in self._unrecorded and self._replaying:
                return NoDataError(self.because({ITSELF: self._unrecorded[ITSELF]}))
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
            self._add_what_was_heard(measurement, names)
        except Exception as failure:
            error = failure
        finally:
            self._forget()
        merged = Merged(False, False)
        try:
            if measurement is None or error is not None:
                reduce_over_ranks([], False, self.device)
            else:
                merged = measurement.reduce(self.device, self._complaints.unsaid)
        except Exception as failure:
            error = failure
        if measurement is None or not merged.valid:
            reason = failure_of_any_rank(error)
            self._complaints.exchange()
            # all ranks or none go on without a probe
            raise NoDataError(str(reason)) if any(everyones(isinstance(error, NoDataError))) else reason
        self.merged = True
        if merged.unsaid:
            self._complaints.exchange()
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
        report_gaps(measurement, computed, self._due, self._complaints)
        report_kept_weights(self.start, self._complaints)
        report_other_heads(self._structure, computed.structure, self._complaints)
        self._structure = computed.structure
        if self._weighs_heads:
            report_importance(failures, computed, self._complaints)
        return computed


def _replayed(calls: Iterable[ProbeCall]) -> Calls:
    return [(recorded.call, 0, recorded.scored or 0) for recorded in calls]


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
