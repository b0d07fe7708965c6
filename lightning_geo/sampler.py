"""Takes samples of the observed models, by replaying a probe or by watching the training forward."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from lightning_geo.complaints import Complaints
from lightning_geo.compute import Bases, Computed
from lightning_geo.importance import LossFunction, NoLossError
from lightning_geo.measure import LayerChoice, Measurement, special_tokens
from lightning_geo.observed import ITSELF, choose
from lightning_geo.probe import Share, on_call
from lightning_geo.reduction import reduce_over_ranks
from lightning_geo.replay import Call, RandomState, device_of, has_fast_path, is_compiled, undisturbed
from lightning_geo.schema import spec_of
from lightning_geo.taps import Tap

__all__ = ["Sampler"]

Context = Callable[[], AbstractContextManager[object]]


class Sampler:
    """Measures the same models again and again.

    Args:
        candidates: Modules that may be observed by name; the first sample shows which do attend.
        metrics: Stored names.
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
        metrics: tuple[str, ...],
        layers: LayerChoice,
        rank: int,
        special_token_ids: Iterable[int] | None,
        max_queries: int | None,
        loss_fn: LossFunction | None,
        forward_context: Context,
        complaints: Complaints,
    ) -> None:
        self.models = dict(candidates)
        self._taps = {
            n: Tap(model, special_tokens(model, special_token_ids)) for n, model in self.models.items()
        }
        self._metrics = metrics
        self._settings = (layers, rank, max_queries)
        #: whether the next sample measures the weights too
        self.weighs = True
        #: weights at the run's start by model: filled in by the first sample that measures their drift
        self.start: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._loss_fn = loss_fn
        self._forward_context = forward_context
        self._complaints = complaints
        self._chosen = False
        self._measurement: Measurement | None = None
        self._failure: Exception | None = None
        #: why a model's importance could not be measured, by name
        self._importance_failures: dict[str, Exception] = {}
        self._watching = contextlib.ExitStack()
        self._shadows: list[tuple[str, Call, RandomState]] = []
        self._shadow_seconds = 0.0

    def prefer(self, names: Iterable[str]) -> None:
        """Observe these alone, if they are there: an earlier session chose them."""
        names = list(names)
        if names and set(names) <= set(self.models):
            self.models = {name: self.models[name] for name in names}

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return device_of(next(iter(self.models.values())))

    # -- source "probe"

    def replay(self, share: Share, *, importance: bool = False) -> Exception | None:
        """Measure the models on recorded calls; returns what went wrong.

        Args:
            share: On the models' device.
            importance: Whether to measure it too.
        """
        try:
            measurement = self._measurement = self._begin()
            for calls in (share.uncounted, share.calls):
                measurement.discard_values()
                for recorded in calls:
                    if recorded.model in self.models:
                        self._run(measurement, recorded.model, recorded.call)
            if importance:
                self._add_importance(measurement, share)
        except Exception as error:
            return error
        return self._first_failure(measurement)

    def _add_importance(self, measurement: Measurement, share: Share) -> None:
        """A failure costs the importance, not the sample: other ranks may have succeeded."""
        self._importance_failures = {}
        for name, model in self.models.items():
            calls = [recorded for recorded in share.calls if recorded.model == name]
            try:
                measurement.add_importance(model, calls, name, self._loss_fn, self._forward_context)
            except Exception as error:
                self._importance_failures[name] = error

    def _run(
        self,
        measurement: Measurement,
        name: str,
        call: Call,
        *,
        evaluate: bool = True,
        start: int | RandomState = 0,
    ) -> None:
        model = self.models[name]
        with (
            undisturbed(model, evaluate=evaluate, start=start),
            self._forward_context(),
            measurement.observe(name),
        ):
            model(*call.args, **call.kwargs)

    # -- source "batch"

    def watch(self, *, anew: bool) -> None:
        """Observe what the models compute from now on, as a new sample or as more of the last one.

        What goes wrong is kept for the sample's end, which every rank has to reach.
        """
        self.pause()
        try:
            if anew or self._measurement is None:
                self._failure, self._measurement, self._shadow_seconds = None, self._begin(), 0.0
            shadowed = any(is_compiled(model) or has_fast_path(model) for model in self.models.values())
            for name, model in self.models.items():
                if shadowed:
                    self._watching.callback(on_call(model, self._shadow(name)))
                else:
                    self._watching.enter_context(self._measurement.observe(name))
        except Exception as error:
            self._failure = self._failure or error
            self.pause()

    def _shadow(self, name: str) -> Callable[..., None]:
        def keep(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            try:
                start = RandomState.now(self.device)
                self._shadows.append((name, Call(args, kwargs).map(Tensor.detach), start))
            except Exception as error:  # the model is running: it is not to see this
                self._failure = error

        return keep

    def pause(self) -> None:
        """Stop observing; harmless when done twice."""
        self._watching.close()

    def run_shadows(self) -> None:
        """What shows nothing of its attention runs once more on what it was given, eagerly.

        Before the optimizer changes the weights, but after backward, which may need the buffers as they are.
        """
        shadows, self._shadows = self._shadows, []
        if not shadows:
            return
        started = time.perf_counter()
        try:
            for name, call, start in shadows:
                if self._failure is None and self._measurement is not None:
                    self._run(self._measurement, name, call, evaluate=False, start=start)
        except Exception as error:
            self._failure = error
        self._shadow_seconds += time.perf_counter() - started

    @property
    def seconds(self) -> float:
        """What observing the sample has cost so far."""
        return self._shadow_seconds or (0.0 if self._measurement is None else self._measurement.seconds)

    def check_layers(self) -> None:
        """Raise if ``layers`` matches nothing of what was seen so far."""
        if self._measurement is not None and self._measurement.observed:
            self._measurement.check_layers()

    def failure(self) -> Exception | None:
        """What went wrong since the sample began."""
        if self._failure is not None or self._measurement is None:
            return self._failure
        return self._first_failure(self._measurement)

    # -- both

    def _begin(self) -> Measurement:
        metrics = tuple(m for m in self._metrics if self.weighs or spec_of(m).kind != "weights")
        taps = {name: self._taps[name] for name in self.models}
        return Measurement(taps, metrics, *self._settings, start=self.start)

    def _first_failure(self, measurement: Measurement) -> Exception | None:
        if measurement.failures:
            return measurement.failures[0]
        if not measurement.observed:
            names = ", ".join(f"{name or 'the module itself'}" for name in self.models)
            return LookupError(
                f"no attention was seen in {names}. Attention-like modules that ran: "
                f"{measurement.unobserved or 'none'}. Name the model with `module=`"
            )
        return None

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
                measurement.keep(names)
                measurement.check_layers()
        except Exception as failure:
            error = failure
        if measurement is None or error is not None:
            reduce_over_ranks([], False, self.device)
            raise error or RuntimeError("nothing was observed")
        if not measurement.reduce(True, self.device):
            raise RuntimeError("another rank could not take this sample, or saw other layers")
        self.prefer(names)
        self._chosen = True
        computed = measurement.compute(baseline, previous)
        self._report_gaps(measurement, computed)
        return computed

    def _report_gaps(self, measurement: Measurement, computed: Computed) -> None:
        """Say what is absent from the numbers, and why."""
        for name, kind in measurement.unobserved.items():
            self._complaints.report(
                f"no attention could be observed in {name} ({kind})",
                LookupError(
                    "it computes attention in a way that shows neither scaled_dot_product_attention nor a "
                    "softmax over [batch, head, query, key], so that its numbers are absent"
                ),
            )
        for name in self.models:
            error = self._importance_failures.pop(name, None)
            if isinstance(error, NoLossError):
                self._complaints.say("importance is absent", str(error))
            elif error is not None:
                self._complaints.report("importance could not be measured", error)
        known = any("special_mass" in arrays for arrays in computed.stacks.values())
        for name, roles in measurement.unprojected.items():
            self._complaints.say(
                f"the projections of {name} could not be told",
                f"nothing that ran before or after its attention gives its {', '.join(roles)}, or the "
                "parameters are quantised or sharded; what is computed from them is absent",
            )
        if "special_mass" in self._metrics and measurement.takes_ids and not known:
            self._complaints.say(
                "special_mass is absent",
                "the model's config names no bos, eos, cls or sep token; give `special_token_ids=`",
            )
