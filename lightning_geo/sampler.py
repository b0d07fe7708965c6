"""Takes samples of the observed models, by replaying a probe or by watching the training forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from lightning_geo.complaints import Complaints
from lightning_geo.compute import Bases, Computed
from lightning_geo.measure import LayerChoice, Measurement, special_tokens
from lightning_geo.observed import choose
from lightning_geo.probe import ProbeCall, on_call
from lightning_geo.replay import Call, device_of, is_compiled, undisturbed
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
        forward_context: Context,
        complaints: Complaints,
    ) -> None:
        self.models = dict(candidates)
        self._taps = {n: Tap(model, special_tokens(model, special_token_ids)) for n, model in self.models.items()}
        self._settings = (metrics, layers, rank)
        self._forward_context = forward_context
        self._complaints = complaints
        self._chosen = False
        self._measurement: Measurement | None = None
        self._watching = contextlib.ExitStack()
        self._shadows: list[tuple[str, Call]] = []

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return device_of(next(iter(self.models.values())))

    # -- source "probe"

    def replay(self, calls: Iterable[ProbeCall], counted: bool = True) -> Exception | None:
        """Measure the models on recorded calls; returns what went wrong.

        Args:
            calls: On the models' device.
            counted: Whether they count: a rank without inputs replays one for its layout alone.
        """
        measurement = self._measurement = self._begin()
        try:
            for recorded in calls:
                if recorded.model in self.models:
                    self._run(measurement, recorded.model, recorded.call, evaluate=True, seed=0)
        except Exception as error:
            return error
        if not counted:
            measurement.discard_values()
        return self._first_failure(measurement)

    def _run(
        self, measurement: Measurement, name: str, call: Call, *, evaluate: bool, seed: int | None
    ) -> None:
        model = self.models[name]
        with (
            undisturbed(model, evaluate=evaluate, seed=seed),
            self._forward_context(),
            measurement.observe(name),
        ):
            model(*call.args, **call.kwargs)

    # -- source "batch"

    def watch(self, *, anew: bool) -> None:
        """Observe what the models compute from now on, as a new sample or as more of the last one."""
        self.pause()
        if anew or self._measurement is None:
            self._measurement = self._begin()
        for name, model in self.models.items():
            if is_compiled(model):
                remove = on_call(model, self._shadow(name))
                self._watching.callback(remove)
            else:
                self._watching.enter_context(self._measurement.observe(name))

    def _shadow(self, name: str) -> Callable[..., None]:
        def keep(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self._shadows.append((name, Call(args, kwargs).map(Tensor.detach)))

        return keep

    def pause(self) -> None:
        """Stop observing; harmless when done twice."""
        self._watching.close()

    def run_shadows(self) -> Exception | None:
        """Compiled code shows nothing: run what it was given once more, eagerly."""
        shadows, self._shadows = self._shadows, []
        try:
            for name, call in shadows:
                assert self._measurement is not None
                self._run(self._measurement, name, call, evaluate=False, seed=None)
        except Exception as error:
            return error
        return None if self._measurement is None else self._first_failure(self._measurement)

    # -- both

    def _begin(self) -> Measurement:
        return Measurement({name: self._taps[name] for name in self.models}, *self._settings)

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
        measurement, self._measurement = self._measurement, None
        if measurement is None:
            measurement = self._begin()
        if error is None and not self._chosen:
            names = choose(measurement.observed)
            measurement.keep(names)
            measurement.check_layers()
            self.models = {name: self.models[name] for name in names}
        valid = measurement.reduce(error is None, self.device)
        if error is not None:
            raise error
        if not valid:
            raise RuntimeError("another rank could not take this sample, or saw other layers")
        self._chosen = True
        computed = measurement.compute(baseline, previous)
        for name, kind in measurement.unobserved.items():
            self._complaints.say(
                f"no attention could be observed in {name} ({kind})",
                "its numbers are absent; it computes attention in a way that shows neither "
                "scaled_dot_product_attention nor a softmax over [batch, head, query, key]",
            )
        return computed
