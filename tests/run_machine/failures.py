"""Failures at drawn places: of the user's own code, and inside of the monitor."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl

from lightning_geo.loggers.logger_sinks import LoggerSinks
from lightning_geo.loggers.scalars import ScalarSink
from lightning_geo.measurement import call_statistics, rank_reduction
from lightning_geo.measurement.assemble import SampleDerivation
from lightning_geo.measurement.sample import Measurement
from lightning_geo.monitor.batch_observation import BatchObservation
from lightning_geo.monitor.open_sample import OpenSample
from lightning_geo.monitor.probe_replay import ProbeReplay
from lightning_geo.monitor.sampler import Sampler
from lightning_geo.observe.replay.replica import Replica
from lightning_geo.probe.probe import Probe
from lightning_geo.probe.recorder import CallRecorder
from lightning_geo.storage.record_file import RecordFile

__all__ = ["FAULTS", "HOOKS", "PLACES", "Failing", "Failure", "InjectedError", "fault"]


class InjectedError(RuntimeError):
    """Raised where an operation says so."""


class Failure:
    """Raises once, when a place is reached for the n-th time; harmless without a place."""

    def __init__(self, place: str = "", count: int = 0, kind: type[BaseException] = InjectedError) -> None:
        self.place, self.count, self.kind = place, count, kind
        self.raised = False

    def __call__(self, place: str) -> None:
        if place != self.place or self.raised:
            return
        if self.count == 0:
            self.raised = True
            raise self.kind(f"at {place}")
        self.count -= 1


#: Hooks of a callback of the user's that may fail.
HOOKS = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_sanity_check_end", "on_train_start",
    "on_train_epoch_start", "on_train_batch_start", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end", "on_validation_start",
    "on_validation_batch_start", "on_validation_batch_end", "on_validation_end", "on_train_epoch_end",
    "on_save_checkpoint", "on_train_end", "on_fit_end", "teardown",
)  # fmt: skip

#: Where a fit may fail.
PLACES = (
    "training_step", "training_step_end", "validation_step", "optimizer_step", "optimizer_step_end",
    "forward", *HOOKS,
)  # fmt: skip


class Failing(pl.Callback):
    """A callback of the user's that fails in one of its hooks."""

    def __init__(self) -> None:
        self.failure = Failure()


def _failing(name: str) -> Callable[..., None]:
    def hook(self: Failing, *args: Any, **kwargs: Any) -> None:
        self.failure(name)

    return hook


for _name in HOOKS:
    setattr(Failing, _name, _failing(_name))


#: Functions of the package that may fail, and the owner of each.
FAULTS: dict[str, tuple[Any, str]] = {
    "the sampler is made": (Sampler, "__init__"),
    "models are watched": (BatchObservation, "watch"),
    "the probe is replayed": (ProbeReplay, "replay"),
    "a sample begins": (OpenSample, "begin"),
    "a sample is concluded": (Sampler, "conclude"),
    "a sample is prepared": (BatchObservation, "add_importance"),
    "statistics are packed": (rank_reduction, "_pack"),
    "metrics are derived": (Measurement, "derive"),
    "metrics are finished": (SampleDerivation, "finish"),
    "observation ends": (BatchObservation, "pause"),
    "attention is measured": (call_statistics, "attention"),
    "a copy is made": (Replica, "running"),
    "recording starts": (CallRecorder, "start"),
    "recording ends": (CallRecorder, "settled"),
    "the probe is joined": (Probe, "joined"),
    "sinks are opened": (LoggerSinks, "open"),
    "the record is written": (RecordFile, "write"),
    "the record is closed": (RecordFile, "close"),
    "scalars are logged": (ScalarSink, "write"),
}

#: Those that do their work before they raise: nobody else takes hooks off.
_WORKING = ("observation ends",)


@contextlib.contextmanager
def fault(name: str | None, at: int = 0) -> Iterator[None]:
    """While open, a function of the package raises from its ``at``-th call on."""
    if name is None:
        yield
        return
    owner, function = FAULTS[name]
    original, calls = inspect.getattr_static(owner, function), [0]
    bound = original.__func__ if isinstance(original, classmethod) else original

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > at:
            if name in _WORKING:
                bound(*args, **kwargs)
            raise InjectedError(f"when {name}")
        return bound(*args, **kwargs)

    with patch.object(owner, function, classmethod(broken) if bound is not original else broken):
        yield
