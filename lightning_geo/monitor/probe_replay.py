"""The sampler's strategy on the probe: recorded calls run once more, on twins of the models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from lightning_geo.measurement.importance import LossFunction, NoImportanceError, importances
from lightning_geo.measurement.sample import Measurement
from lightning_geo.monitor.joint_replay import run_together
from lightning_geo.monitor.observed_models import ObservedModels
from lightning_geo.monitor.open_sample import OpenSample
from lightning_geo.observe.module_selection import ITSELF
from lightning_geo.observe.replay.dependence import Dependence
from lightning_geo.observe.replay.replica import Replica
from lightning_geo.observe.replay.undisturbed_run import Call, RandomState
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.division import divides, surely_divides
from lightning_geo.probe.probe import Share
from lightning_geo.utils._torch import path_without_units
from lightning_geo.utils.errors import let_go
from lightning_geo.utils.ranks import failure_of_any_rank, on_all_ranks
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Calls", "Context", "ProbeReplay"]

Context = Callable[[], AbstractContextManager[object]]

#: Calls; where random numbers start in each, a seed or an earlier state; how many sequences have their
#: single scores measured, None where the whole sample has a number of them.
Calls = Sequence[tuple[Call, int | RandomState, int | None]]

#: Why there is no importance on the probe.
_SPLIT = 'ranks have parts of the parameters only. `source="batch"` takes the backward of training'


class ProbeReplay:
    """Replays recorded calls of the models, or of the LightningModule that they are in.

    It is what the probe knows of the models, see :class:`~lightning_geo.probe.candidates.Candidates`.

    Args:
        observed: The models.
        sample: The sample in the making.
        loss_fn: Loss that ``importance`` refers to; None for the model's own.
        forward_context: The trainer's precision.
        warn_once: Where failures go.
        trained: The module that is trained, as the loop calls it; None if that is the model.
    """

    def __init__(
        self,
        observed: ObservedModels,
        sample: OpenSample,
        loss_fn: LossFunction | None,
        forward_context: Context,
        warn_once: WarnOnce,
        trained: nn.Module | None = None,
    ) -> None:
        self._observed = observed
        self._sample = sample
        self._loss_fn = loss_fn
        self._forward_context = forward_context
        root, models = observed.root, observed.models
        self._replicas = {n: Replica(model, n, warn_once, trained) for n, model in models.items()}
        #: of the LightningModule, whose own calls are replayed where a model's do not begin at the data
        self._outside: Replica | None = None
        self._paths: dict[str, str] = {}
        if root is not None:
            own = next((r for name, r in self._replicas.items() if models[name] is root), None)
            self._outside = Replica(root, "", warn_once, trained) if own is None else own
            paths = {id(module): path_without_units(path) for path, module in root.named_modules()}
            self._paths = {name: paths.get(id(model), "") for name, model in models.items()}
        #: models with calls of their own in the probe
        self._called: set[str] = set()
        #: models without a recorded call -> why, as long as a call of the LightningModule may show them
        self._lacking: dict[str, str] = {}

    @property
    def models(self) -> dict[str, nn.Module]:
        """The observed models, by name."""
        return self._observed.models

    @property
    def root(self) -> nn.Module | None:
        """The LightningModule that contains them; None without one."""
        return self._observed.root

    @property
    def dependence(self) -> Dependence | None:
        """Distinguishes calls on data from calls whose inputs depend on parameters."""
        return self._observed.dependence

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return self._observed.device

    def because(self, reasons: Mapping[str, str]) -> str:
        """Explain why models have no recorded call."""
        return self._observed.because(reasons)

    @property
    def together(self) -> bool:
        """Whether ranks replay in step, because each of them has a part of the parameters only."""
        return any(replica.gathering is not None for replica in self._everyone())

    def replay(
        self,
        share: Share | None,
        metrics: tuple[str, ...],
        unrecorded: Mapping[str, str] | None = None,
        failure: Exception | None = None,
    ) -> Exception | None:
        """Measure the models on recorded calls; returns what went wrong.

        Where parameters are split over ranks, all ranks call this at the same time. They agree first that
        each of them is able to; then all make the same number of calls, with the same collectives in them,
        whatever fails on one of them (see :class:`.Gathering`).

        Args:
            share: On the models' device; None after a failure.
            metrics: Stored names of those that are due; without any it is a trial, of which all ranks return
                a failure if one of them has it.
            unrecorded: Models without a recorded call -> why.
            failure: What went wrong on this rank before.
        """
        measurement = None
        try:
            if failure is None and share is not None:
                measurement = self._begin(share, metrics, dict(unrecorded or {}))
        except Exception as error:
            failure = let_go(error)
        together = self.together
        if together and not on_all_ranks(failure is None, self.device):
            return failure_of_any_rank(failure)
        if failure is not None or measurement is None or share is None:
            return failure
        try:
            failure = (self._run_together if together else self._run_share)(measurement, share)
        except Exception as error:
            failure = let_go(error)
        failure = failure or self._sample.failure_in(measurement)
        if together and not metrics and not on_all_ranks(failure is None, self.device):
            return failure_of_any_rank(failure)
        return failure

    def _begin(self, share: Share, metrics: tuple[str, ...], lacking: dict[str, str]) -> Measurement:
        sample = self._sample
        sample.due, sample.replayed = metrics, True
        self._lacking = lacking
        measurement = sample.measurement = sample.begin()
        recorded_calls = (*share.uncounted, *share.calls)
        # a call of the LightningModule shows them all
        outside = any(recorded.call.method for recorded in recorded_calls)
        sample.unrecorded = {} if outside else self._lacking
        self._called = {recorded.model for recorded in recorded_calls if not recorded.call.method}
        return measurement

    def _run_share(self, measurement: Measurement, share: Share) -> None:
        for calls in (share.uncounted, share.calls):
            measurement.discard_values()
            for name in self.models:
                own_calls = [r for r in calls if r.model == name and not r.call.method]
                self.run(measurement, [name], _replayed(own_calls))
            self._replay_outside(measurement, _replayed(r for r in calls if r.call.method))
        if self._sample.weighs_heads:
            self._add_importance(measurement, share)

    def _run_together(self, measurement: Measurement, share: Share) -> Exception | None:
        def measure(recorded: ProbeCall) -> None:
            self.run(measurement, self._shown_by(recorded), _replayed([recorded]))

        failure = run_together(
            share, measurement.discard_values, measure, self._stand_in, self._forward_context
        )
        if failure is None and self._sample.weighs_heads:
            self._sample.importance_failures = {}
            for name in filter(measurement.measures, self.models):
                self._sample.importance_failures[name] = NoImportanceError(_SPLIT)
                measurement.add_importance([], self.device, name)
        return failure

    def _replay_outside(self, measurement: Measurement, calls: Calls) -> None:
        """Run the LightningModule's calls; until models are chosen a step that needs its trainer may fail."""
        try:
            self.run(measurement, self._uncalled, calls)
        except Exception as error:
            if self._observed.settled:
                raise
            method = calls[0][0].method
            reason = f"{type(error).__name__}: {error} (in a replay of its {method})"
            self._sample.unrecorded = self._lacking | {ITSELF: reason}

    @property
    def _uncalled(self) -> list[str]:
        """The models that the LightningModule's calls show: those that have no calls of their own."""
        return [name for name in self.models if name not in self._called]

    def _shown_by(self, recorded: ProbeCall) -> list[str]:
        """The models that a call shows."""
        return self._uncalled if recorded.call.method else [recorded.model]

    def _together(self, calls: list[ProbeCall]) -> list[list[ProbeCall]]:
        """Group one model's calls: the same copy may run a group, one call after the other."""
        reusable = bool(calls) and self._stand_in(calls[0].call, calls[0].model).reusable
        return [calls] if reusable else [[call] for call in calls]

    def _stand_in(self, call: Call, name: str) -> Replica:
        """Return the module to replay: the model, or the LightningModule that it is in."""
        replica = self._outside if call.method else self._replicas[name]
        assert replica is not None
        return replica

    def _observed_in(self, ran: nn.Module, call: Call, name: str) -> nn.Module:
        """The model in what is replayed."""
        return ran.get_submodule(self._paths[name]) if call.method else ran

    def divides(self, recorded: ProbeCall) -> bool:
        """Whether the first axis of a call holds sequences; see :mod:`~lightning_geo.probe.division`."""
        if self.together:  # ranks have recorded calls of their own: a trial would be on one of them alone
            return surely_divides(recorded)
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
        failures = self._sample.importance_failures = {}
        for name in filter(measurement.measures, self.models):
            complete, parts = [], []
            try:
                for calls in self._together([r for r in share.calls if name in self._shown_by(r)]):
                    replica = self._stand_in(calls[0].call, name)
                    with replica.running() as model:
                        seen = self._observed_in(model, calls[0].call, name)
                        loss_fn, context = self._loss_fn, self._forward_context
                        asked = measurement.asks(name)
                        parts += importances(model, calls, loss_fn, context, seen, replica.once, asked)
                complete = parts
            except Exception as error:
                failures[name] = let_go(error)
            measurement.add_importance(complete, self.device, name)

    def run(
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
                    twin = self._observed_in(model, first, name)
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


def _replayed(calls: Iterable[ProbeCall]) -> Calls:
    return [(recorded.call, 0, recorded.scored or 0) for recorded in calls]
