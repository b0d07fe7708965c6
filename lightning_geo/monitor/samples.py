"""One run's samples: taken, merged over ranks, and sent to the loggers."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from lightning_geo.loggers.logger_sinks import LoggerSinks
from lightning_geo.measurement.assemble import Computed
from lightning_geo.metrics.foreign import foreign_specs
from lightning_geo.metrics.selection import is_of_batch, is_of_probe, needs_probe
from lightning_geo.monitor.baseline import bases_of, check_bases
from lightning_geo.monitor.run_findings import RunFindings
from lightning_geo.monitor.runs_by_trainer import runs_of
from lightning_geo.monitor.sampler import Sampler
from lightning_geo.monitor.settings import Settings
from lightning_geo.monitor.state import RunState
from lightning_geo.observe.replay.dependence import NoDataError
from lightning_geo.probe.source import ProbeSource
from lightning_geo.storage.events import Dropped
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils._lightning import add_callback_metrics
from lightning_geo.utils._torch import class_name
from lightning_geo.utils.device_time import seconds_on
from lightning_geo.utils.errors import call_all
from lightning_geo.utils.formatting import some
from lightning_geo.utils.ranks import everyones, from_rank_zero, world_size
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Samples", "tensors"]

#: The warning of a run whose state in the checkpoint cannot be used, and what the run does instead.
_UNUSABLE = "the checkpoint's state of the monitor cannot be used"
_ANEW = "Probe, baseline and costs start anew"

#: Samples without any attention after which no more are taken.
_IN_VAIN = 3


class Samples:
    """Takes the samples of a run, keeps its state, and sends records to the loggers.

    Args:
        settings: The monitor's.
        warn_once: Where failures go.
        sinks: Where records go.
    """

    def __init__(self, settings: Settings, warn_once: WarnOnce, sinks: LoggerSinks) -> None:
        self._settings = settings
        self._warn_once = warn_once
        self.sinks = sinks
        self.last_record: GeometryRecord | None = None
        self.state = RunState()
        self.findings = RunFindings(settings.alerts, warn_once)
        self.inputs = ProbeSource(settings.probe, settings.probe_size, settings.probe_tokens, warn_once)
        self.sampler: Sampler | None = None
        #: whether samples are taken on the probe, rather than on the training batch
        self.replays = settings.source == "probe"
        #: step from which an earlier session's samples are void
        self.resumed_at: int | None = None
        self.step, self.epoch, self.batches = -1, 0, 0
        #: whether a sample was lost because there is nothing to replay: the next step makes up for it
        self.overdue = False
        #: samples that saw no attention, before the first that did
        self._vain = 0

    def copied(self, loggers: Iterable[Any]) -> Samples:
        """Return the samples of a copy of the monitor: without a model, in a directory of their own.

        Args:
            loggers: Of the run, whose directories belong to it.
        """
        samples = copy.copy(self)
        samples.sampler = None
        samples.sinks = self.sinks.copied(loggers)
        samples.state = replace(self.state, version=None)
        samples.findings = self.findings.copied()
        return samples

    def stop(self) -> None:
        """Leave nothing behind in the models."""
        call_all(self.inputs.stop, *(() if self.sampler is None else (self.sampler.stop,)))

    def open(self, trainer: Any) -> None:
        """Open the loggers; without one, all monitors of a run share the directory of its record."""
        states = (self.state, *(run.samples.state for run in runs_of(trainer)))
        versions = [state.version for state in states if state.version is not None]
        self.sinks.open(trainer, self.resumed_at, next(iter(versions), None))
        self.state.version = self.sinks.version or self.state.version

    def replay(self, trainer: Any, step: int, *, final: bool = False) -> None:
        """Take a sample of the models as they are, on the probe.

        Args:
            trainer: Whose run it is.
            step: Optimizer step that the weights enter.
            final: Whether it is the run's last.
        """
        assert self.sampler is not None
        started = seconds_on(self.sampler.observed.device)
        error: Exception | None
        try:
            share = self.inputs.share(self.sampler.observed.device)
            due = self.due_metrics(final=final)
            error = self.sampler.on_probe.replay(share, due, self.inputs.unrecorded)
        except Exception as failure:  # the other ranks wait all the same
            error = failure
        self.conclude(trainer, step, error, started, final=final)
        if self.sampler is not None:
            self.sampler.on_probe.forget()

    def watch_masks(self) -> None:
        """Look at masks in the forward pass of the step that begins, which has been sampled on the probe."""
        if self.sampler is not None and any(map(is_of_batch, self._settings.metrics)):
            self.sampler.training_masks.watch(self.state.samples)

    def due_metrics(self, *, final: bool = False) -> tuple[str, ...]:
        """Return the metrics that the next sample measures."""
        # two batches of the same weights differ as much as 60 steps of training do
        possible = (
            name for name in self._settings.metrics
            if self.replays or not (needs_probe(name) or is_of_probe(name))
        )  # fmt: skip
        return self._settings.clocks.due(possible, self.state.samples, final=final)

    def conclude(
        self, trainer: Any, step: int, error: Exception | None, started: float, *, final: bool = False
    ) -> None:
        """Merge the sample over ranks, make its record, send it everywhere.

        Args:
            trainer: Whose run it is.
            step: Optimizer step that the measured weights enter.
            error: What went wrong on this rank.
            started: When the sample began, in seconds of the device's clock.
            final: Whether it is the run's last.
        """
        assert self.sampler is not None
        state, before = self.state, self.state.samples
        state.step = step
        about = self._warn_once.about("a sample was dropped", f"first at step {step}")
        with about, self._noting(trainer, step):
            try:
                computed = self.sampler.conclude(error, state.baseline, state.previous)
            except NoDataError as reason:
                self.observe_batches(reason)
                return
            if computed.broken:
                self._warn_once.report(
                    "activations are not finite",
                    FloatingPointError(
                        f"NaN or infinity in {some(computed.broken)}; what it spoils has no value"
                    ),
                    f"first at step {step}",
                )
            state.models = list(self.sampler.observed.models)
            self.inputs.keep(state.models)
            if state.samples == 0 and self._settings.baseline is not None:
                check_bases(state.baseline, computed.bases, self._settings.baseline)
            ends = state.samples == 0 or final
            self._move_bases(computed)
            self.last_record = record = self._record(computed, step, started, matrices=ends)
            state.samples += 1
            state.summaries = self._summaries(record, self.sampler.sample.due)
            add_callback_metrics(trainer, tensors(state.summaries))
            if trainer.is_global_zero:
                self.open(trainer)
                self.findings.add(record)
                self.sinks.write(record, final=final)
                self.findings.tell(trainer, record)
        state.cost += seconds_on(self.sampler.observed.device) - started
        if state.samples == before and self.sampler.merged and world_size() > 1:
            state.samples += 1  # other ranks have it, and what is due next depends on the number
        self.findings.act(trainer, self.sampler.observed.device)
        if state.samples == before == 0:
            self._give_up_in_vain()

    def _give_up_in_vain(self) -> None:
        """Stop to look for attention after a few samples that saw none; the same on every rank."""
        assert self.sampler is not None
        self._vain += self.sampler.saw_nothing
        if from_rank_zero(int(self._vain >= _IN_VAIN), self.sampler.observed.device):
            self._warn_once.warn(f"no attention was seen in {_IN_VAIN} samples, so that no more are taken")
            self.stop()
            self.inputs.probe = self.sampler = None

    def observe_batches(self, reason: LookupError) -> None:
        """Observe training itself from now on: what could be replayed does not begin at the data."""
        self._warn_once.warn(
            'there is nothing to replay that begins at the data: `source="batch"` is used', str(reason)
        )
        self.replays, self.overdue = False, True
        self.inputs.stop()
        self.inputs.probe = None

    @contextlib.contextmanager
    def _noting(self, trainer: Any, step: int) -> Iterator[None]:
        """Let a run without samples say that the monitor was there, and why it has none."""
        try:
            yield
        except Exception as error:
            self.note_dropped(trainer, step, error)
            raise

    def note_dropped(self, trainer: Any, step: int, error: Exception) -> None:
        """Leave in the record of a run without samples that one was dropped, and why."""
        if self.state.samples == 0:
            self.state.dropped += 1
            if trainer.is_global_zero:
                self.open(trainer)
                reason = f"{type(error).__name__}: {error}"
                self.sinks.note(Dropped(self._settings.name, self.state.dropped, reason), step)

    def _summaries(self, record: GeometryRecord, due: tuple[str, ...]) -> dict[str, float]:
        """Model summaries by tag: the sample's, NaN for one that was due and has no value any more.

        Those of metrics on a slower clock stay: a resumed run's EarlyStopping needs them.
        """
        due = tuple(name for name in due if not (self.replays and is_of_batch(name)))  # a clock of its own
        lost = {tag for tag in self.state.summaries if tag.rpartition("/")[2] in due}
        values = {f"{self._settings.name}/{key}": value for key, value in record.summaries().items()}
        return {**self.state.summaries, **dict.fromkeys(lost, math.nan), **values}

    def _move_bases(self, computed: Computed) -> None:
        """The next sample's velocity is against this sample, and drift against the first."""
        if self.replays:
            self.state.previous = computed.bases
        if self.state.baseline is None:
            self.state.baseline = self.state.previous

    def _record(self, computed: Computed, step: int, started: float, *, matrices: bool) -> GeometryRecord:
        assert self.sampler is not None
        model = ", ".join(map(class_name, self.sampler.observed.models.values()))
        return GeometryRecord(
            computed.stacks,
            {"class": model, "stacks": computed.structure},
            computed.matrices() if matrices else {},
            step=step,
            epoch=self.epoch,
            batches_seen=self.batches,
            wall_time=time.time(),
            cost_seconds=seconds_on(self.sampler.observed.device) - started,
            probe_fingerprint=self.inputs.fingerprint,
            coverage=self.sampler.coverage.as_dict() | _not_finite(computed),
            # once a key, always a key: a chart that ends where all is well again would mislead
            coverage_shown=f"{self._settings.name}/coverage" in self.state.summaries,
            specs=foreign_specs(self._settings.metrics),
        )

    def start_bases_anew(self) -> None:
        """The probe is another one than the checkpoint's: its subspaces are not to be compared."""
        self.state.previous = None
        self.state.baseline = None if self._settings.baseline is None else bases_of(self._settings.baseline)

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in containers that a weights-only load accepts."""
        state = self.state.state_dict() | {"findings": self.findings.state_dict()}
        return state | self.inputs.state_dict(inputs=self._settings.probe_in_checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, or start anew from one that another version wrote."""
        try:
            state = RunState.from_state_dict(state_dict)
            self.inputs.load_state_dict(state_dict)
            self.findings.load_state_dict(state_dict["findings"])
        except Exception as error:
            self._start_inputs_anew()
            self.findings = RunFindings(self._settings.alerts, self._warn_once)
            self._warn_once.warn(_UNUSABLE, f"{type(error).__name__}: {error}. {_ANEW}")
        else:
            self.state = state

    def agree(self) -> None:
        """Start anew on every rank where they know different things of the run: samples are all ranks'.

        One of them may have been unable to load its state, or to derive what a sample showed.
        """
        own = self.state.step, self.state.samples, self.state.models, self.inputs.fingerprint
        if any(other != own for other in everyones(own)):
            self.state = RunState(version=self.state.version)
            self.findings = RunFindings(self._settings.alerts, self._warn_once)
            self._start_inputs_anew()
            self._warn_once.warn("ranks do not know the same of the run", _ANEW)

    def _start_inputs_anew(self) -> None:
        settings = self._settings
        limits = settings.probe_size, settings.probe_tokens
        self.inputs = ProbeSource(settings.probe, *limits, self._warn_once)


def _not_finite(computed: Computed) -> dict[str, dict[str, list[int]]]:
    """Return the layers with activations that are not finite, by stack, as the record's coverage has them."""
    layers: dict[str, set[int]] = {}
    for place in computed.broken.values():
        stack, _, layer = place.rpartition("/")
        layers.setdefault(stack, set()).add(int(layer))
    return {"not_finite": {stack: sorted(of) for stack, of in layers.items()}} if layers else {}


def tensors(values: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Numbers as a Trainer keeps them among its ``callback_metrics``."""
    return {name: torch.tensor(value) for name, value in values.items()}
