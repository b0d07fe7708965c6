"""The sampler's strategy on the batch: a step's own forward, and the gradients of its backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from torch import Tensor

from lightning_geo.measurement.importance import NoImportanceError
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.training_importance import TrainingGradients
from lightning_geo.monitor.absence_warnings import by_reason
from lightning_geo.monitor.observed_models import ObservedModels
from lightning_geo.monitor.open_sample import OpenSample
from lightning_geo.monitor.probe_replay import Calls, ProbeReplay
from lightning_geo.observe import name_of
from lightning_geo.observe.replay.call_hooks import on_call, on_return
from lightning_geo.observe.replay.torch_compile import compiles_attention
from lightning_geo.observe.replay.undisturbed_run import Call, RandomState, has_fast_path
from lightning_geo.observe.training_calls import begins_training
from lightning_geo.utils.cuda_graphs import CaptureError, is_capturing
from lightning_geo.utils.device_time import Stopwatch
from lightning_geo.utils.errors import let_go

__all__ = ["BatchObservation"]

#: Why there are no head gradients.
_COMPILED = (
    "the model is compiled, or may take PyTorch's fused path: its backward pass has no gradients by head"
)


class BatchObservation:
    """Observes the training forward, or runs it once more, eagerly, where it is compiled or fused.

    Args:
        observed: The models.
        sample: The sample in the making.
        replay: Runs calls once more.
    """

    def __init__(self, observed: ObservedModels, sample: OpenSample, replay: ProbeReplay) -> None:
        self._observed = observed
        self._sample = sample
        self._replay = replay
        #: gradients of training's own backward pass by model, where importance is measured from them
        self._gradients: dict[str, TrainingGradients] = {}
        self._watching = contextlib.ExitStack()
        self._shadows: list[tuple[str, Call, RandomState]] = []
        #: time that running models once more took in this sample
        self._shadow_watch = Stopwatch()

    def watch(self, metrics: tuple[str, ...] | None = None) -> None:
        """Observe what the models compute from now on.

        What goes wrong is kept for the sample's end, which every rank has to reach.

        Args:
            metrics: Stored names of those that are due in a new sample; None for more of the last one.
        """
        sample = self._sample
        sample.replayed = False
        try:
            self.pause()
            if metrics is not None or sample.measurement is None:
                self.forget()
                sample.importance_failures = {}
                sample.due = sample.due if metrics is None else metrics
                sample.failure, sample.measurement = None, sample.begin()
                self._shadow_watch = Stopwatch()
            self._install(sample.measurement)
        except Exception as error:
            sample.keep_failure(let_go(error))
            self.pause()

    def _install(self, measurement: Measurement) -> None:
        """Install what observes the models, until :meth:`pause`."""
        sample, models = self._sample, self._observed.models
        dependence = None if self._observed.settled else self._observed.dependence
        shadowed = any(compiles_attention(model) or has_fast_path(model) for model in models.values())
        if dependence is not None:
            for undo in dependence.watch():
                self._watching.callback(undo)
        for name, model in models.items():
            if dependence is not None:
                self._watching.callback(on_call(model, dependence.noting(name)))
            if shadowed:
                self._watching.callback(on_call(model, self._shadow(name)))
                sample.importance_failures[name] = NoImportanceError(_COMPILED)
                continue
            gradients = None
            if sample.weighs_heads:
                gradients = self._gradients.setdefault(name, TrainingGradients())
                self._watching.callback(on_call(model, gradients.begins))
                self._watching.callback(on_return(model, gradients.ends))
            self._watching.enter_context(measurement.observe(name, gradients, training=True))

    def _shadow(self, name: str) -> Callable[..., None]:
        def keep(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            try:
                if is_capturing():
                    raise CaptureError
                if not begins_training():
                    if self._sample.measurement is not None:
                        self._sample.measurement.pass_over(name)
                    return
                start = RandomState.now(self._observed.device)
                # as they are now: the forward that begins may make a cache longer
                self._shadows.append((name, Call(args, kwargs).map(Tensor.detach).independent(), start))
            except Exception as error:  # raised here, it would stop the user's forward pass
                self._sample.failure = let_go(error)

        return keep

    def pause(self) -> None:
        """Stop observing; harmless when done twice."""
        self._watching.close()

    def spoil(self, error: Exception) -> None:
        """Keep what went wrong while training was observed: it costs the sample, on every rank."""
        self._sample.keep_failure(let_go(error))

    def differentiates(self, factor: float | Tensor | None) -> None:
        """Announce a backward pass of training.

        Args:
            factor: What the loss was multiplied by; None once the pass has ended.
        """
        for gradients in self._gradients.values():
            gradients.factor = factor

    def add_importance(self, measurement: Measurement, names: Iterable[str]) -> None:
        """Add the importance that training's own backward pass gave; a failure costs the importance alone."""
        names = list(names)
        for name in (name for name in names if name in self._gradients):
            gradients, importances = self._gradients[name], []
            try:
                importances = list(gradients.importances())
                if gradients.absences:
                    prefix = name if len(names) > 1 else ""
                    absences = {
                        name_of(module, self._observed.models[name], prefix): reason
                        for module, reason in gradients.absences.items()
                    }
                    self._sample.importance_failures[name] = NoImportanceError(by_reason(absences))
            except Exception as error:
                self._sample.importance_failures[name] = let_go(error)
            measurement.add_importance(importances, self._observed.device, name)

    def forget(self) -> None:
        """Keep no gradients of training's backward pass."""
        for gradients in self._gradients.values():
            gradients.close()
        self._gradients.clear()

    def run_shadows(self) -> None:
        """Re-run models whose attention was hidden (compiled or fused), eagerly, on the same inputs.

        This happens before the optimizer changes the weights, but after backward, which may need the buffers
        as they are.
        """
        shadows, self._shadows = self._shadows, []
        if not shadows:
            return
        sample = self._sample
        with self._shadow_watch.running():
            try:
                for name in self._observed.models:
                    calls: Calls = [(call, start, None) for owner, call, start in shadows if owner == name]
                    if sample.failure is None and sample.measurement is not None:
                        self._replay.run(sample.measurement, [name], calls, evaluate=False)
            except Exception as error:
                sample.failure = let_go(error)

    def clock(self) -> Callable[[], float]:
        """Return a function of the seconds that observing the sample has cost; it waits for the device."""
        measurement, watch = self._sample.measurement, self._shadow_watch
        return lambda: watch.seconds or (0.0 if measurement is None else measurement.seconds)
