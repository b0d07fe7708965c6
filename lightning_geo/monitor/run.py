"""One run of one Trainer: when a sample is due, and what of training is recorded or observed for it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from lightning_geo.loggers.logger_sinks import LoggerSinks
from lightning_geo.monitor._lightning import after_the_others, lightning_logger, monitors, steps_taken
from lightning_geo.monitor.preparation import Preparation
from lightning_geo.monitor.samples import Samples
from lightning_geo.monitor.schedule import OverheadBudget
from lightning_geo.monitor.settings import Settings
from lightning_geo.utils._lightning import (
    accumulates,
    add_callback_metrics,
    batches_done,
    loss_factor,
)
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
        share = settings.max_overhead
        self._budget = None if share is None else OverheadBudget(share)
        self._began = 0
        #: whether a sample of this step waits for what is recorded or observed in it
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

    def fit_starts(self, trainer: Any, pl_module: Any) -> None:
        """Check what can be checked before anything runs; from here on the module is complete."""
        self._preparation.make_sampler(trainer, pl_module)
        self._started = time.perf_counter()

    def sanity_check_starts(self) -> None:
        """Record the probe from the validation data: runs over the same data then share it."""
        self._preparation.sanity_check_starts()

    def validation_batch_starts(self, batch: Any, batch_idx: int) -> None:
        """Record what the sanity check calls."""
        if self.samples.inputs.records:
            self.samples.inputs.step_begins("validation_step", batch, batch_idx)

    def validation_batch_ended(self) -> None:
        """Leave the models alone between batches."""
        self.samples.inputs.step_ends()

    def sanity_check_ended(self) -> None:
        """Use what was recorded."""
        self._preparation.sanity_check_ended()

    def training_starts(self, trainer: Any) -> None:
        """Go on from a checkpoint, or try the given probe."""
        samples = self.samples
        self._preparation.take_state()  # strategies that shard restore checkpoints after `on_fit_start`
        step = self._began = steps_taken(trainer)
        # what an earlier session wrote from here on is void, but for the last sample of one that had ended
        samples.delivery.resumed_at = (step + (samples.state.ended or samples.state.step == step)) or None
        samples.state.ended = False
        if samples.delivery.resumed_at is not None and trainer.is_global_zero:
            # now, so that what is void ends before anything that this session logs
            samples.delivery.open(trainer)
        add_callback_metrics(trainer, samples.state.summaries)
        if self._budget is not None:
            self._budget.before = samples.state.elapsed
            self._budget.start(step)
        self._preparation.training_starts(trainer, step)

    def batch_starts(self, trainer: Any, batch: Any, batch_idx: int) -> None:
        """Sample the weights that enter this step, or start to observe its forward."""
        samples = self.samples
        step = steps_taken(trainer)
        anew, samples.step = step != samples.step, step
        samples.delivery.deliver(step)
        if anew:
            samples.epoch, samples.batches = trainer.current_epoch, batches_done(trainer)
            self._warn_once.late = step != self._began
        due = self._pending
        if anew:
            due = step != samples.state.step and (self._is_due(step) or samples.overdue)
        if samples.sampler is None:
            return
        if anew:
            # where an earlier step turned out not to be due, what was remembered of it is not used
            samples.sampler.on_probe.forget()
        if samples.inputs.records and (due or step == self._began):
            with self._warn_once.about("the probe could not be recorded"):  # on one rank alone, it may be
                if anew:
                    samples.sampler.on_probe.remember()
                samples.inputs.step_begins("training_step", batch, batch_idx)
        if not due:
            return
        if anew:  # what is due now depends on the sample before
            samples.delivery.flush()
        if samples.replays and anew:
            self._pending = samples.inputs.probe is None
            if not self._pending:
                samples.replay(trainer, step)
                samples.watch_masks()
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
        if self._budget is not None:
            if self._budget.looks(step):  # at what samples have cost so far
                samples.delivery.flush()
            return self._budget(step, samples.state.cost, samples.state.samples, agree)
        due, failure = self._settings.schedule.agreed(step, agree)
        if failure is not None:
            self._warn_once.report("`schedule` failed", failure, f"first at step {step}")
        return due

    def backward_starts(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Stop observing: gradient checkpointing calls attention again in backward."""
        samples = self.samples
        if samples.sampler is None:
            return
        if pl_module.automatic_optimization:
            samples.inputs.step_ends()
        samples.state.cost += samples.sampler.training_masks.pause()
        try:
            samples.sampler.on_batch.pause()
        except Exception as error:
            samples.sampler.on_batch.spoil(error)
            raise
        if self._pending and not samples.replays:
            with self._warn_once.about("training's backward pass could not be observed"):
                samples.sampler.on_batch.differentiates(loss_factor(trainer, loss))

    def backward_ended(self, pl_module: Any) -> None:
        """Run what compiled code hid, and go on observing where more forward may follow."""
        samples = self.samples
        if samples.replays or samples.sampler is None or not self._pending:
            return
        samples.sampler.on_batch.differentiates(None)
        samples.sampler.on_batch.run_shadows()
        if not pl_module.automatic_optimization:
            samples.sampler.on_batch.watch()

    def optimizer_starts(self, trainer: Any) -> None:
        """Take the first sample where the probe was recorded from this very step's batches."""
        samples = self.samples
        if samples.replays:
            self._sample_what_was_recorded(trainer)
        elif self._pending and samples.sampler is not None and samples.state.samples == 0:
            with self._warn_once.about("a sample was dropped", f"first at step {samples.step}"):
                samples.sampler.check_layers()  # before the first update, rather than at the sample's end

    def _sample_what_was_recorded(self, trainer: Any) -> None:
        samples = self.samples
        if self._pending or samples.step == self._began:
            # at a session's first step too, due or not: a resumed run then records what a fresh one did
            self._preparation.use_recorded()
            self._preparation.try_layers()
        if not self._pending:
            return
        self._pending = False
        if samples.inputs.probe is not None:
            samples.replay(trainer, samples.step)
            return
        assert samples.sampler is not None
        samples.observe_batches(samples.inputs.missing(samples.sampler.on_probe))

    def batch_ended(self, trainer: Any, pl_module: Any) -> None:
        """Conclude a sample taken from the step's own batches."""
        samples = self.samples
        samples.inputs.step_ends()
        if samples.sampler is not None:
            samples.state.cost += samples.sampler.training_masks.pause()
        samples.delivery.alerting.step_ended(trainer)
        if samples.replays and not pl_module.automatic_optimization:
            self._sample_what_was_recorded(trainer)  # a step is a batch, with or without an update
        if samples.replays or not self._pending or samples.sampler is None:
            return
        try:
            samples.sampler.on_batch.pause()
            samples.sampler.on_batch.run_shadows()  # where backward was not Lightning's
        except Exception as error:  # the other ranks wait for this one's sample all the same
            samples.sampler.on_batch.spoil(error)
        if not accumulates(trainer):
            self._pending = False
            sampler = samples.sampler
            samples.conclude(trainer, samples.step, sampler.sample.first_failure(), sampler.on_batch.clock())

    def deliver(self, trainer: Any) -> None:
        """Write the last sample's record, if it is there or a callback may read its numbers at this step."""
        delivery = self.samples.delivery
        if delivery.waits and monitors(trainer, f"{self._settings.name}/"):
            delivery.flush()
        delivery.deliver(self.samples.step)

    def training_ends(self, trainer: Any, finish: Callable[[], None]) -> None:
        """Measure the final weights once everybody is done: weight averaging replaces them here.

        Args:
            trainer: Whose run it is.
            finish: Calls :meth:`finish`.
        """
        # first, since all ranks meet there
        self._cancel_last = after_the_others(trainer, finish)
        self._warn_once.late = True
        self.samples.state.ended = True
        call_all(self.samples.delivery.flush, self.stop)

    def finish(self, trainer: Any) -> None:
        """Take the last sample, and sum the run up."""
        samples = self.samples
        try:
            samples.delivery.flush()
            step, samples.batches = steps_taken(trainer), batches_done(trainer)
            known = samples.sampler is not None and samples.inputs.probe is not None
            if samples.replays and known and samples.state.step != step:
                assert samples.sampler is not None
                samples.sampler.on_probe.forget()  # what the last step was entered with
                samples.replay(trainer, step, final=True)
        finally:  # the other ranks wait, whatever happened here
            self._warn_once.exchange()
        if samples.state.samples and trainer.is_global_zero:
            lines = samples.delivery.status.ended(
                samples=samples.state.samples,
                cost=samples.state.cost,
                seconds=time.perf_counter() - self._started,
                verdict=samples.delivery.alerting.verdict,
                directory=samples.sinks.directory,
                places=samples.sinks.places,
            )
            for line in lines:
                lightning_logger(trainer).info(line)

    def end(self) -> None:
        """Close what was opened, and leave nothing behind."""
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
        if self._budget is not None:
            self.samples.state.elapsed = self._budget.elapsed
        return self.samples.state_dict()
