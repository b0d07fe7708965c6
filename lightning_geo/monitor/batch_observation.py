"""Samples of training itself: what the models compute in a step, and the gradients of its backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from lightning_geo.measurement.importance import NoImportanceError
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.training_importance import TrainingGradients
from lightning_geo.monitor.absence_warnings import by_reason
from lightning_geo.monitor.probe_replay import Calls, ProbeReplay
from lightning_geo.observe import name_of
from lightning_geo.observe.replay.call_hooks import on_call
from lightning_geo.observe.replay.torch_compile import compiles_attention
from lightning_geo.observe.replay.undisturbed import Call, RandomState, has_fast_path
from lightning_geo.observe.training_calls import begins_training
from lightning_geo.utils.device_time import seconds_on
from lightning_geo.utils.errors import let_go

__all__ = ["BatchObservation"]

#: Why there are no head gradients.
_COMPILED = (
    "the model is compiled, or may take PyTorch's fused path: its backward pass has no gradients by head"
)


class BatchObservation(ProbeReplay):
    """Observes the training forward, or runs it once more, eagerly, where it is compiled or fused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: gradients of training's own backward pass by model, where importance is measured from them
        self._gradients: dict[str, TrainingGradients] = {}
        self._watching = contextlib.ExitStack()
        self._shadows: list[tuple[str, Call, RandomState]] = []
        self._shadow_seconds = 0.0

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
                for undo in self.dependence.watch():
                    self._watching.callback(undo)
            for name, model in self.models.items():
                if self.dependence is not None and not self._chosen:
                    self._watching.callback(on_call(model, self.dependence.noting(name)))
                if shadowed:
                    self._watching.callback(on_call(model, self._shadow(name)))
                    self._importance_failures[name] = NoImportanceError(_COMPILED)
                    continue
                gradients = (
                    self._gradients.setdefault(name, TrainingGradients()) if self._weighs_heads else None
                )
                if gradients is not None:
                    self._watching.callback(on_call(model, gradients.begins))
                self._watching.enter_context(self._measurement.observe(name, gradients, training=True))
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
            except Exception as error:  # raised here, it would stop the user's forward pass
                self._failure = let_go(error)

        return keep

    def pause(self) -> None:
        """Stop observing; harmless when done twice."""
        self._watching.close()

    def spoil(self, error: Exception) -> None:
        """Keep what went wrong while training was observed: it costs the sample, on every rank."""
        self._failure = self._failure or let_go(error)

    def differentiates(self, factor: float | Tensor | None) -> None:
        """Announce a backward pass of training.

        Args:
            factor: What the loss was multiplied by; None once the pass has ended.
        """
        for gradients in self._gradients.values():
            gradients.factor = factor

    def _add_training_importance(self, measurement: Measurement, names: Iterable[str]) -> None:
        """Add the importance that training's own backward pass gave; a failure costs the importance alone."""
        names = list(names)
        for name in (name for name in names if name in self._gradients):
            gradients, importances = self._gradients[name], []
            try:
                importances = list(gradients.importances())
                if gradients.absences:
                    prefix = name if len(names) > 1 else ""
                    absences = {
                        name_of(module, self.models[name], prefix): reason
                        for module, reason in gradients.absences.items()
                    }
                    self._importance_failures[name] = NoImportanceError(by_reason(absences))
            except Exception as error:
                self._importance_failures[name] = let_go(error)
            measurement.add_importance(importances, self.device, name)

    def _forget(self) -> None:
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
        started = seconds_on(self.device)
        try:
            for name in self.models:
                calls: Calls = [(call, start, None) for owner, call, start in shadows if owner == name]
                if self._failure is None and self._measurement is not None:
                    self._run(self._measurement, [name], calls, evaluate=False)
        except Exception as error:
            self._failure = let_go(error)
        self._shadow_seconds += seconds_on(self.device) - started

    @property
    def seconds(self) -> float:
        """Seconds that observing the sample has cost so far."""
        return self._shadow_seconds or (0.0 if self._measurement is None else self._measurement.seconds)
