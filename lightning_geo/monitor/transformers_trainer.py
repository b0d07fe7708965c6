"""The callback of ``transformers.Trainer``, and of the trainers that TRL and axolotl derive from it."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import TrainerCallback

from lightning_geo.monitor import trainer_checkpoint
from lightning_geo.monitor.arguments import MonitorArguments
from lightning_geo.monitor.run import Run
from lightning_geo.monitor.trainer_guard import StepGuard
from lightning_geo.monitor.trainer_host import TrainerHost
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils._transformers import trainer_calling
from lightning_geo.utils.errors import call_all
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["GeometryCallback"]


class _Session:
    """One call of ``Trainer.train``: its run and its host."""

    def __init__(self, callback: GeometryCallback, run: Run, host: TrainerHost) -> None:
        self.run = run
        self.host = host
        #: whether the evaluation before the first step is recorded
        self.evaluates = False
        # where an exception leaves training elsewhere than in a step
        self._undone = weakref.finalize(callback, _end, run, host)
        self._undone.atexit = False
        self.unguard: Callable[[], None] = lambda: None
        #: in torch's optimizers, where the Trainer announces updates too late
        self._hooks = contextlib.ExitStack()

    def await_update(self, warn_once: WarnOnce) -> None:
        """Go on just before the update of this step, where it is part of the backward pass.

        Args:
            warn_once: Where failures go.
        """
        if not self.host.updates_in_backward():
            return
        announced = False

        def begins(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            nonlocal announced
            if announced or not self.host.updates_in_backward(optimizer):
                return
            announced = True
            with warn_once.about("an update could not be observed"):
                self.update_begins()

        self._hooks.callback(register_optimizer_step_pre_hook(begins).remove)

    def update_begins(self) -> None:
        """Take the sample of a step whose batches were recorded or observed, before the update."""
        self.run.backward_starts(self.host, None)
        self.run.backward_ended(self.host)
        self.run.optimizer_starts(self.host)

    def step_ends(self) -> None:
        """Stop waiting for an update."""
        self._hooks.close()

    def end(self) -> None:
        """Leave nothing behind, in the model or open."""
        call_all(self.step_ends, self.unguard, self._undone)


def _end(run: Run, host: TrainerHost) -> None:
    call_all(run.end, host.close)
    run.samples.sampler = None


def _event(event: Callable[[Any, _Session], None]) -> Callable[..., Any]:
    """Lead an event to the session of its Trainer; an error in it does not stop training."""

    @functools.wraps(event)
    def run(self: GeometryCallback, args: Any, state: Any, control: Any, **_: Any) -> Any:
        session = self._session_of(state)
        if session is None:
            return None
        with self._warn_once.about(f"`{event.__name__}` failed"):
            event(self, session)
        control.should_training_stop |= session.host.stops
        control.should_save |= session.host.saves
        session.host.saves = False
        return control

    return run


class GeometryCallback(MonitorArguments, TrainerCallback):
    """Log the geometry of attention while ``transformers.Trainer`` fine-tunes a model.

    The metrics, the arguments and the logged keys are those of :class:`~lightning_geo.GeometryMonitor`. The
    numbers go where ``report_to`` sends the Trainer's own: TensorBoard and W&B, no other integration. The
    record goes to TensorBoard's directory, else to the files of the W&B run, else to
    ``<output_dir>/lightning_geo/version_0``, ``version_1``, …

    The sample at step ``s`` describes the weights that enter it; a last one, in ``on_train_end``, the final
    weights, with ``load_best_model_at_end`` the best ones. The probe is recorded from the evaluation before
    the first step, with ``eval_on_start=True``, else from the batches of the first step.

    A checkpoint ``checkpoint-500`` holds the state in a file of its own, ``lightning_geo-geometry.pt``.
    ``train(resume_from_checkpoint=True)`` finds it; of a checkpoint elsewhere than in ``output_dir``, set
    ``TrainingArguments(resume_from_checkpoint=…)`` too. ``Alerts(stop=…)`` ends training as
    EarlyStoppingCallback does, ``Alerts(checkpoint=…)`` has the Trainer save one.

    Rank 0 logs the observed models, the findings and a summary to standard error, beside the progress bar, or
    where logging was set up to; ``logging.getLogger("lightning_geo").setLevel(logging.WARNING)`` keeps the
    warnings only, whatever transformers' verbosity.

    ``importance`` with ``source="batch"`` is absent where the Trainer computes the loss itself, as TRL's
    SFTTrainer does, because its scale is unknown. Under FSDP and DeepSpeed's ZeRO-3 ``updates`` are absent,
    and ``importance`` on the probe.

    The arguments are those of :class:`~lightning_geo.monitor.arguments.MonitorArguments`.

    Example:
        ::

            from transformers import Trainer, TrainingArguments
            from lightning_geo import GeometryCallback

            args = TrainingArguments("out", report_to="tensorboard")
            trainer = Trainer(model, args, train_dataset=data, callbacks=[GeometryCallback(every_n_steps=50)])
            trainer.train()
    """

    def _prepare(self) -> None:
        self._sessions: list[_Session] = []
        self._last: _Session | None = None

    def __getstate__(self) -> dict[str, Any]:
        # a copy belongs to no Trainer yet
        return {**vars(self), "_sessions": [], "_last": None}

    @property
    def last_record(self) -> GeometryRecord | None:
        """The last sample of the run that began last; waits for its numbers. None before the first."""
        if self._last is None:
            return None
        self._last.run.samples.delivery.flush()
        return self._last.run.samples.delivery.record

    @property
    def metrics(self) -> dict[str, float]:
        """The last model summaries by key, such as ``geometry/entropy``; the same on every rank."""
        if self._last is None:
            return {}
        self._last.run.samples.delivery.flush()
        return dict(self._last.host.summaries)

    def run_of(self, state: Any) -> Run | None:
        """Find the run of a Trainer.

        Args:
            state: The Trainer's ``state``.

        Returns:
            Its run; ``None`` if this callback watches none with that state.
        """
        session = self._session_of(state)
        return None if session is None else session.run

    def _session_of(self, state: Any) -> _Session | None:
        return next((s for s in self._sessions if s.host.state is state), None)

    # -- the run begins

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Begin a run, or go on from a checkpoint; check what can be checked before anything runs."""
        trainer = trainer_calling(self)
        self._end_those_that_failed(trainer)
        self._warn_once.late = False
        run = Run(self._settings, self._warn_once)
        if self._last is not None:
            run = self._last.run.anew()
        host = TrainerHost(args, state, model, trainer)
        session = self._last = _Session(self, run, host)
        self._sessions.append(session)
        if trainer is not None:
            session.unguard = StepGuard.of(trainer).add(lambda: self._end(session))
        try:
            with self._warn_once.about("`on_train_begin` failed"):
                run.fit_starts(host)
                if host.step > 0:
                    trainer_checkpoint.load(run, args, state, self._settings.name, self._warn_once)
                run.training_starts(host)
                session.evaluates = bool(getattr(args, "eval_on_start", False)) and run.samples.inputs.records
                if session.evaluates:
                    run.validation_batch_starts(None, 0)
        except BaseException:
            self._end(session)
            raise

    def _end_those_that_failed(self, current: Any) -> None:
        """End sessions whose ``train`` an exception left outside of a step: no event reports it.

        Args:
            current: The Trainer that begins. Within a step of another one, that goes on.
        """
        for session in tuple(self._sessions):
            other = session.host.trainer
            if other is None or other is current or trainer_calling(self, other) is None:
                self._end(session)

    @_event
    def on_evaluate(self, session: _Session) -> None:
        """Make the probe of the calls in the evaluation before the first step."""
        if session.evaluates:
            session.evaluates = False
            session.run.sanity_check_ended()

    # -- a step

    @_event
    def on_step_begin(self, session: _Session) -> None:
        """Sample the weights that enter this step, or start to observe its forward."""
        session.run.batch_starts(session.host, None, session.host.count)
        session.await_update(self._warn_once)

    @_event
    def on_substep_end(self, session: _Session) -> None:
        """Go on with the next batch of the same step."""
        run, host = session.run, session.host
        run.backward_starts(host, None)
        run.backward_ended(host)
        host.accumulates = True
        run.batch_ended(host)
        host.accumulates = False
        host.count += 1
        run.batch_starts(host, None, host.count)

    @_event
    def on_pre_optimizer_step(self, session: _Session) -> None:
        """Take the sample of a step whose batches were recorded or observed, before the update."""
        if not session.host.updates_in_backward():
            session.update_begins()

    @_event
    def on_step_end(self, session: _Session) -> None:
        """Conclude a sample taken from the step's own batches."""
        run, host = session.run, session.host
        session.step_ends()
        run.batch_ended(host)
        host.count += 1
        if run.waits:  # a Trainer that does not announce updates
            run.make_up()
        run.deliver(host)

    # -- others read the samples' numbers

    @_event
    def on_epoch_end(self, session: _Session) -> None:
        """Deliver the last sample."""
        session.run.samples.delivery.flush()

    @_event
    def on_save(self, session: _Session) -> None:
        """Save the state beside the checkpoint."""
        trainer_checkpoint.save(session.run, session.host.args, session.host.state, self._settings.name)

    # -- the run ends

    @_event
    def on_train_end(self, session: _Session) -> None:
        """Measure the final weights, close files and remove hooks."""
        try:
            session.run.training_ends()
            session.run.finish(session.host)
        finally:
            self._end(session)

    def _end(self, session: _Session) -> None:
        if session in self._sessions:
            self._sessions.remove(session)
        session.end()
