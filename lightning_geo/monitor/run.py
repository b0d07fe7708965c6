"""One run of one Trainer: decides when a sample is due, and records or observes training for it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from lightning_geo.loggers.logger_sinks import LoggerSinks
from lightning_geo.monitor.host import Host
from lightning_geo.monitor.preparation import Preparation
from lightning_geo.monitor.samples import Samples
from lightning_geo.monitor.schedule import Pace
from lightning_geo.monitor.settings import Settings
from lightning_geo.utils.errors import call_all
from lightning_geo.utils.ranks import from_rank_zero
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Run"]


class Run:
    """Decides at which steps samples are taken, and has them taken.

    Args:
        settings: The monitor's.
        warn_once: Where failures go.
        sinks: Where records go.
    """

    def __init__(self, settings: Settings, warn_once: WarnOnce, sinks: LoggerSinks | None = None) -> None:
        self._settings = settings
        self._warn_once = warn_once
        config = settings.as_config()
        sinks = sinks or LoggerSinks(settings.name, settings.scalars, warn_once, config=config)
        self.samples = Samples(settings, warn_once, sinks)
        self._preparation = Preparation(settings, warn_once, self.samples)
        self._pace = Pace(settings.schedule, settings.max_overhead, warn_once)
        self._began = 0
        #: whether a sample of this step waits for calls to be recorded or observed in it
        self._pending = False
        #: cancels the last sample
        self._cancel_last: Callable[[], None] | None = None
        self._started = time.perf_counter()

    def anew(self) -> Run:
        """Return the monitor's next run."""
        return Run(self._settings, self._warn_once, self.samples.sinks.anew())

    def copied(self, loggers: Iterable[Any]) -> Run:
        """Return the run of a copy of the monitor: another one, whose record has a directory of its own.

        Args:
            loggers: Of this run, whose directories belong to it.
        """
        run = copy.copy(self)
        run.samples = self.samples.copied(loggers)
        run._preparation = self._preparation.copied(run.samples)
        run._pending, run._cancel_last = False, None
        return run

    def fit_starts(self, host: Host) -> None:
        """Check what can be checked before anything runs; from here on the module is complete."""
        self._preparation.make_sampler(host)
        self._started = time.perf_counter()

    def sanity_check_starts(self) -> None:
        """Record the probe from the validation data: runs over the same data then share it."""
        self._preparation.sanity_check_starts()

    def validation_batch_starts(self, batch: Any, batch_idx: int) -> None:
        """Record the models' calls in the sanity check."""
        if self.samples.inputs.records:
            self.samples.inputs.step_begins("validation_step", batch, batch_idx)

    def validation_batch_ended(self) -> None:
        """Leave the models alone between batches."""
        self.samples.inputs.step_ends()

    def sanity_check_ended(self) -> None:
        """Make the probe of the recorded calls."""
        self._preparation.sanity_check_ended()

    def training_starts(self, host: Host) -> None:
        """Go on from a checkpoint, or try the given probe."""
        samples = self.samples
        self._preparation.take_state()  # strategies that shard restore checkpoints after `on_fit_start`
        step = self._began = host.step
        # an earlier session's samples from here on are void, except the last sample of a session that ended
        samples.delivery.resumed_at = (step + (samples.state.ended or samples.state.step == step)) or None
        samples.state.ended = False
        if samples.delivery.resumed_at is not None and host.is_rank_zero:
            # now, so that what is void ends before anything that this session logs
            samples.delivery.open(host)
        host.show(samples.state.summaries)
        self._pace.start(step, samples.state.elapsed)
        self._preparation.training_starts(host, step)

    def batch_starts(self, host: Host, batch: Any, batch_idx: int) -> None:
        """Sample the weights that enter this step, or start to observe its forward."""
        samples = self.samples
        step = host.step
        anew, samples.step = step != samples.step, step
        samples.delivery.deliver(step)
        if anew:
            samples.epoch, samples.batches = host.epoch, host.batches
            self._warn_once.late = step != self._began
        due = self._pending
        if anew:
            due = step != samples.state.step and (self._is_due(step) or samples.overdue)
        if samples.sampler is None:
            return
        if anew:
            # an earlier step may have turned out not to be due: drop the state that was kept for it
            samples.sampler.on_probe.forget()
        if samples.inputs.records and (due or step == self._began):
            with self._warn_once.about("the probe could not be recorded"):  # on one rank alone, it may be
                if anew:
                    samples.sampler.on_probe.remember()
                samples.inputs.step_begins("training_step", batch, batch_idx)
        if not due:
            return
        if anew:  # the metrics due now depend on the sample before
            samples.delivery.flush()
        if samples.replays and anew:
            samples.overdue = False
            self._pending = samples.inputs.probe is None or host.waits_for_update
            if not self._pending:
                samples.replay(host, step)
                samples.watch_masks(host, samples.state.samples)
            elif samples.inputs.probe is not None:
                samples.sampler.on_probe.remember()
                samples.watch_masks(host, samples.state.samples + 1)
        if not samples.replays:  # from the start, or because there is nothing to replay
            self._pending, samples.overdue = True, False
            if samples.sampler.observed.dependence is not None:
                samples.sampler.observed.dependence.step_begins(batch)
            samples.sampler.on_batch.watch(samples.due_metrics() if anew else None)

    def _is_due(self, step: int) -> bool:
        samples = self.samples
        if samples.sampler is None:
            return False
        agree = partial(from_rank_zero, device=samples.sampler.observed.device)
        if self._pace.looks(step):  # at what samples have cost so far
            samples.delivery.flush()
        return self._pace.due(step, samples.state.cost, samples.state.samples, agree)

    def backward_starts(self, host: Host, loss: Tensor | None) -> None:
        """Stop observing: gradient checkpointing calls attention again in backward."""
        samples = self.samples
        if samples.sampler is None:
            return
        if host.updates_by_step:
            samples.inputs.step_ends()
        samples.state.cost += samples.sampler.training_masks.pause()
        try:
            samples.sampler.on_batch.pause()
        except Exception as error:
            samples.sampler.on_batch.spoil(error)
            raise
        if self._pending and not samples.replays:
            with self._warn_once.about("training's backward pass could not be observed"):
                samples.sampler.on_batch.differentiates(host.loss_factor(loss))

    def backward_ended(self, host: Host) -> None:
        """Re-run models that compiled code hid, and go on observing where more forward may follow."""
        samples = self.samples
        if samples.replays or samples.sampler is None or not self._pending:
            return
        samples.sampler.on_batch.differentiates(None)
        samples.sampler.on_batch.run_shadows()
        if not host.updates_by_step:
            samples.sampler.on_batch.watch()

    def optimizer_starts(self, host: Host) -> None:
        """Take the first sample where the probe was recorded from this very step's batches."""
        samples = self.samples
        if samples.replays:
            self._sample_what_was_recorded(host)
        elif self._pending and samples.sampler is not None and samples.state.samples == 0:
            with self._warn_once.about("a sample was dropped", f"first at step {samples.step}"):
                samples.sampler.check_layers()  # before the first update, rather than at the sample's end

    def _sample_what_was_recorded(self, host: Host) -> None:
        samples = self.samples
        if self._pending or samples.step == self._began:
            # at a session's first step too, due or not: a resumed run then records what a fresh one did
            self._preparation.use_recorded()
            self._preparation.try_layers()
        if not self._pending:
            return
        self._pending = False
        if samples.inputs.probe is not None:
            samples.replay(host, samples.step)
            return
        assert samples.sampler is not None
        samples.observe_batches(samples.inputs.missing(samples.sampler.on_probe))

    @property
    def pending(self) -> bool:
        """Whether a sample of this step waits for calls to record or observe in it, or for its update."""
        return self._pending

    @property
    def waits(self) -> bool:
        """Whether a sample on the probe waits for the update of this step."""
        return self._pending and self.samples.replays

    def make_up(self) -> None:
        """Let the next step be sampled instead of this one, whose update was not announced."""
        samples = self.samples
        self._pending = False
        self._preparation.use_recorded()
        self._preparation.try_layers()
        if samples.sampler is not None and samples.inputs.probe is None:
            samples.observe_batches(samples.inputs.missing(samples.sampler.on_probe))
        samples.overdue = True

    def batch_ended(self, host: Host) -> None:
        """Conclude a sample taken from the step's own batches."""
        samples = self.samples
        samples.inputs.step_ends()
        if samples.sampler is not None:
            samples.state.cost += samples.sampler.training_masks.pause()
        samples.delivery.alerting.step_ended(host)
        if samples.replays and not host.updates_by_step:
            self._sample_what_was_recorded(host)  # a step is a batch, with or without an update
        if samples.replays or not self._pending or samples.sampler is None:
            return
        try:
            samples.sampler.on_batch.pause()
            samples.sampler.on_batch.run_shadows()  # where backward was not Lightning's
        except Exception as error:  # the other ranks wait for this one's sample all the same
            samples.sampler.on_batch.spoil(error)
        if not host.accumulates:
            self._pending = False
            sampler = samples.sampler
            samples.conclude(host, samples.step, sampler.sample.first_failure(), sampler.on_batch.clock())

    def deliver(self, host: Host) -> None:
        """Write the last sample's record, if it is there or a callback may read its numbers at this step."""
        delivery = self.samples.delivery
        if delivery.waits and host.reads(f"{self._settings.name}/"):
            delivery.flush()
        delivery.deliver(self.samples.step)

    def training_ends(self, cancel_last: Callable[[], None] | None = None) -> None:
        """The last step is done; :meth:`finish` comes next, once everybody is done with the weights.

        Args:
            cancel_last: Cancels :meth:`finish`, where it is still to come when this returns.
        """
        self._cancel_last = cancel_last
        self._warn_once.late = True
        self.samples.state.ended = True
        call_all(self.samples.delivery.flush, self.stop)

    def finish(self, host: Host) -> None:
        """Take the last sample, and sum the run up."""
        samples = self.samples
        try:
            samples.delivery.flush()
            step, samples.batches = host.step, host.batches
            known = samples.sampler is not None and samples.inputs.probe is not None
            if samples.replays and known and samples.state.step != step:
                assert samples.sampler is not None
                samples.sampler.on_probe.forget()  # the kept state of the last step
                samples.replay(host, step, final=True)
        finally:  # the other ranks wait, whatever happened here
            self._warn_once.exchange()
        if samples.state.samples and host.is_rank_zero:
            seconds = time.perf_counter() - self._started
            for line in samples.delivery.run_lines(seconds):
                host.log.info(line)

    def end(self) -> None:
        """Close files and remove all hooks."""
        cancel, self._cancel_last = self._cancel_last, None
        last = () if cancel is None else (cancel,)
        flush = self.samples.delivery.flush
        call_all(flush, self.stop, self.samples.sinks.close, self._warn_once.warn_of_pending, *last)

    def stop(self) -> None:
        """Leave the models alone."""
        self._pending = False
        call_all(self.samples.stop, self._preparation.stop)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in containers that a weights-only load accepts."""
        self.samples.state.elapsed = self._pace.elapsed(self.samples.state.elapsed)
        return self.samples.state_dict()
