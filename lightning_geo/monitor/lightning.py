"""The Lightning callback: when samples are taken, on which ranks, and what survives a restart."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from lightning_geo.loggers.logger_sinks import LoggerSinks
from lightning_geo.measurement.assemble import Computed
from lightning_geo.metrics.selection import needs_probe, select
from lightning_geo.monitor._lightning import (
    CallbackBase,
    after_the_others,
    batches_done,
    class_name,
    is_sharded,
    lightning_logger,
    loss_factor,
    steps_taken,
)
from lightning_geo.monitor.arguments import check_source
from lightning_geo.monitor.baseline import bases_of, check_bases
from lightning_geo.monitor.sampler import Sampler
from lightning_geo.monitor.schedule import OverheadBudget, Schedule, SlowClocks
from lightning_geo.monitor.state import RunState
from lightning_geo.monitor.trainer_turns import Turns
from lightning_geo.observe.module_selection import candidates, check_layers
from lightning_geo.observe.replay.dependence import NoDataError
from lightning_geo.observe.replay.torch_compile import is_compiled_function
from lightning_geo.probe.source import ProbeSource
from lightning_geo.storage.events import Dropped
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.arguments import check_name, check_one_of, check_positive, check_token_ids
from lightning_geo.utils.device_time import seconds_on
from lightning_geo.utils.formatting import some
from lightning_geo.utils.ranks import failure_of_any_rank, from_rank_zero, on_all_ranks, rank
from lightning_geo.utils.warn_once import Complaints

__all__ = ["GeometryMonitor"]

#: What a LightningModule that was compiled as a whole keeps to itself.
_SEALED = (
    "the LightningModule is compiled as a whole, which hides the calls of the models in it. Compile the "
    "model inside instead (`self.model.compile()` in `configure_model`), or give `probe=`"
)

#: Samples without any attention after which none is to be expected.
_IN_VAIN = 3

Hook = TypeVar("Hook", bound=Callable[..., None])


def _hook(hook: Hook) -> Hook:
    """A hook of the callback: on its own Trainer's run, and what fails in it does not stop training."""

    @functools.wraps(hook)
    def run(self: GeometryMonitor, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self._turns.to(trainer, self, self._reset)
        with self._complaints.about(f"`{hook.__name__}` failed"):
            hook(self, trainer, *args, **kwargs)

    return run  # type: ignore[return-value]


class GeometryMonitor(CallbackBase):
    """Watch the geometry of attention while a transformer trains.

    At chosen optimizer steps it observes attention on a fixed probe (the first sequences that the
    trainer feeds the model), computes entropy, pattern, cone, subspace, stream and head metrics and
    sends them to every logger. Sample ``s`` describes the weights that enter step ``s``; the last
    one, at the end of fit, the final weights. Training is bit-identical with and without it.

    Model summaries are logged as ``geometry/<metric>``, layers as
    ``geometry_<family>/<metric>/layer_03``; the summaries are in ``trainer.callback_metrics`` too.

    Args:
        every_n_steps: Optimizer steps between samples (default 50); step 0 is always a sample.
        schedule: ``step -> bool`` instead; asked on rank 0 alone, which answers for the others at each step.
        max_overhead: Share of the run's time that samples may take (0.01 for one per cent), instead: they
            become rarer where they are dear. Which steps were taken is in the record.
        metrics: Families or single metrics; ``None`` for the families ``entropy``, ``pattern``, ``cone``,
            ``subspace``, ``stream`` and ``head``. ``weights``, ``projection``, ``gates``, ``paper`` and
            ``importance`` are measured where they are named.
        layers: Layer indices, or a regular expression on module names; ``None`` for all.
        rank: Dimensions of the subspaces that are compared, at most half a head.
        source: ``"probe"`` replays fixed inputs in eval mode; ``"batch"`` observes the training
            forward itself: no extra forward, but batch noise, and no ``drift`` and ``velocity``.
        probe: A batch or a dataloader to use as the probe; ``None`` records it from the run.
        probe_size: Sequences in the probe, over all ranks; where rows are packed, documents are sequences.
        probe_tokens: Real tokens in the probe, over all ranks: a run with long sequences keeps fewer of them,
            but at least one. A call that cannot be divided is kept whole. ``None`` for no limit.
        probe_in_checkpoint: Whether checkpoints carry the probe's inputs, so that a resumed run
            goes on with the same.
        module: Name of the observed model in the LightningModule; ``None`` finds it.
        baseline: Directory of another run whose first sample ``drift`` is measured against.
        special_token_ids: Input ids that count as special; ``None`` asks the model's config.
        max_queries: Query rows to measure per sequence, drawn at random: linear cost on long sequences.
            Means over rows are then estimates with standard errors (``record["entropy.stderr"]``),
            ``max_logit`` and ``key_entropy`` are absent, however short sequences are. ``None`` measures all.
        weights_every_n_samples: Samples between those that measure too what needs the parameters alone
            (``weights``, the angles of ``projection``; default 10): weights move slowly. The first and
            the last sample always do.
        importance_every_n_samples: Samples from one with ``importance`` to the next; the run's first and last
            sample have it too. On a probe each costs a forward and a backward of every sequence.
        loss_fn: What ``importance`` on a probe is importance to, ``loss_fn(output, *args, **kwargs)`` of one
            call of the observed model; ``None`` for the ``loss`` that the model itself returns.
        scalars: Finest scalars: ``"model"``, ``"layer"`` (headline metrics) or ``"head"``.
        strict: Raise whatever goes wrong instead of warning once.
        name: First part of all tags; give each of two monitors its own.

    Raises:
        ValueError: If an argument's value does not fit.

    Example:
        >>> monitor = GeometryMonitor(every_n_steps=100, metrics=["entropy", "subspace"])
        >>> monitor.last_record is None
        True
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        schedule: Callable[[int], bool] | None = None,
        max_overhead: float | None = None,
        metrics: str | list[str] | None = None,
        layers: int | list[int] | str | None = None,
        rank: int = 8,
        source: Literal["probe", "batch"] = "probe",
        probe: Any = None,
        probe_size: int = 16,
        probe_tokens: int | None = 16_384,
        probe_in_checkpoint: bool = True,
        module: str | None = None,
        baseline: str | os.PathLike[str] | None = None,
        special_token_ids: list[int] | None = None,
        max_queries: int | None = None,
        weights_every_n_samples: int = 10,
        importance_every_n_samples: int = 5,
        loss_fn: Callable[..., Any] | None = None,
        scalars: Literal["model", "layer", "head"] = "layer",
        strict: bool = False,
        name: str = "geometry",
    ) -> None:
        super().__init__()
        check_one_of("source", source, ("probe", "batch"))
        check_one_of("scalars", scalars, ("model", "layer", "head"))
        check_positive("rank", rank)
        check_positive("probe_size", probe_size)
        if probe_tokens is not None:
            check_positive("probe_tokens", probe_tokens)
        if max_queries is not None:
            check_positive("max_queries", max_queries)
        check_token_ids(special_token_ids)
        check_name(name)
        self._schedule = Schedule(every_n_steps, schedule)
        self._clocks = SlowClocks(
            weights_every_n_samples=weights_every_n_samples,
            importance_every_n_samples=importance_every_n_samples,
        )
        self._max_overhead = max_overhead
        if max_overhead is not None and (every_n_steps is not None or schedule is not None):
            raise ValueError(
                "Expected `max_overhead` alone, or `every_n_steps` or `schedule` without it, but got both: "
                "the budget decides which steps are sampled."
            )
        self._metrics = select(metrics)
        check_source(source, self._metrics, probe, baseline, loss_fn)
        self._layers = layers
        self._rank = rank
        self._source = source
        self._given_probe = probe
        self._probe_limits = probe_size, probe_tokens
        self._probe_in_checkpoint = probe_in_checkpoint
        self._module = module
        self._baseline_run = baseline
        self._special_token_ids = special_token_ids
        self._max_queries = max_queries
        self._loss_fn = loss_fn
        self._scalars = scalars
        self._strict = strict
        self._name = name
        self._complaints = Complaints(strict)
        settings = set(vars(self))
        self._reset()
        self._turns = Turns(frozenset(set(vars(self)) - settings))

    def _reset(self) -> None:
        """Start a new run: all that is set here belongs to one run of one Trainer."""
        self.last_record: GeometryRecord | None = None
        self._budget = None if self._max_overhead is None else OverheadBudget(self._max_overhead)
        self._logger_sinks = LoggerSinks(self._name, self._scalars, self._complaints)
        self._run = RunState()
        self._inputs = ProbeSource(self._given_probe, *self._probe_limits, self._complaints)
        self._sampler: Sampler | None = None
        self._replays = self._source == "probe"
        self._resumed_at: int | None = None
        self._began = 0
        self._step, self._epoch, self._batches = -1, 0, 0
        self._pending = False
        #: samples that saw no attention, before the first that did
        self._vain = 0
        #: whether a sample was lost because there is nothing to replay: the next step makes up for it
        self._overdue = False
        self._sealed = False
        self._last: CallbackBase | None = None
        self._eagerly = contextlib.ExitStack()
        self._started = time.perf_counter()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle of the monitor keeps: its arguments and its run's state, but no model."""
        # `log` and `log_dict` are the LightningModule's: Lightning gives them to every callback
        state = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return state | {"_sampler": None, "_pending": False, "_eagerly": contextlib.ExitStack()}

    @property
    def state_key(self) -> str:
        """One state per name."""
        return self._generate_state_key(name=self._name)

    # -- the run begins

    @_hook
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start anew, unless `fit` is called again to go on; a checkpoint's state comes afterwards."""
        if stage != "fit":
            return
        self._complaints.late = False
        self._stop()
        self._logger_sinks.close()  # where an earlier fit ended without any of the hooks that do so
        if steps_taken(trainer) == 0:
            self._reset()

    @_hook
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what can be checked before anything runs; from here on the module is complete."""
        self._replays = self._source == "probe" and not is_sharded(trainer)
        if self._source == "probe" and not self._replays:
            said = 'cannot replay an inner module: `source="batch"` is used'
            self._complaints.say(f"{type(trainer.strategy).__name__} {said}")
        models = candidates(pl_module, self._module)
        check_layers(self._layers, pl_module, *models.values())
        sampler, failure = None, None
        try:
            sampler = Sampler(
                models, self._layers, self._rank, self._special_token_ids, self._max_queries, self._loss_fn,
                trainer.precision_plugin.forward_context, self._complaints, pl_module,
            )  # fmt: skip
            sampler.start = self._run.start
            sampler.prefer(self._run.models)
        except Exception as error:
            sampler, failure = None, error
        if not on_all_ranks(failure is None, trainer.strategy.root_device):
            sampler = None  # on every rank: samples are merged over all of them
            self._complaints.report("the models cannot be observed", failure_of_any_rank(failure))
        self._sampler = sampler
        if self._run.baseline is None and self._baseline_run is not None:
            self._run.baseline = bases_of(self._baseline_run)
        self._sealed = is_compiled_function(pl_module.training_step)
        if self._sealed and not self._replays:
            self._complaints.report("nothing can be observed", LookupError(_SEALED))
            self._sampler = None
        self._started = time.perf_counter()

    @_hook
    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the probe from the validation data: runs over the same data then share it."""
        if self._sealed:  # compiled as a whole, its models' calls show only where nothing is compiled
            self._eagerly.enter_context(torch.compiler.set_stance("force_eager"))
        self._start_recording()

    @_hook
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record what the sanity check calls."""
        if self._inputs.records and trainer.sanity_checking:
            self._inputs.step_begins("validation_step", batch, batch_idx)

    @_hook
    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Leave the models alone between batches."""
        self._inputs.step_ends()

    @_hook
    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Use what was recorded."""
        self._eagerly.close()
        self._use_recorded()

    @_hook
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Go on from a checkpoint, or try the given probe."""
        step = self._began = steps_taken(trainer)
        # what an earlier session wrote from here on is void, but for the last sample of one that had ended
        self._resumed_at = (step + (self._run.ended or self._run.step == step)) or None
        self._run.ended = False
        if self._resumed_at is not None and trainer.is_global_zero:
            # now, so that what is void ends before anything that this session logs
            self._open(trainer)
        trainer.callback_metrics.update(_tensors(self._run.summaries))
        if self._budget is not None:
            self._budget.before = self._run.elapsed
            self._budget.start(step)
        if self._replays and self._sampler is not None and self._inputs.take_given(self._sampler):
            self._start_bases_anew()
        self._try_layers()
        if not self._sealed:
            self._start_recording()
        elif self._sampler is None:
            self._note_dropped(trainer, step, LookupError(_SEALED))
        elif self._replays and self._inputs.probe is None:
            self._stop()
            self._note_dropped(trainer, step, LookupError(_SEALED))
            self._complaints.report("there is no probe", LookupError(_SEALED))
            self._sampler = None

    def _start_recording(self) -> None:
        if self._replays and self._sampler is not None:
            self._inputs.start(self._sampler)

    def _use_recorded(self) -> None:
        if self._inputs.finish():
            self._start_bases_anew()

    def _try_layers(self) -> None:
        """Find a wrong `layers` as soon as there is a probe: the first sample may be dropped, or far off."""
        if self._layers is None or self._sampler is None or self._complaints.late:
            return
        if self._replays and self._inputs.probe is not None:
            self._sampler.try_layers(self._inputs.share(self._sampler.device))

    def _start_bases_anew(self) -> None:
        """The probe is another one than the checkpoint's: its subspaces are not to be compared."""
        self._run.previous = None
        self._run.baseline = None if self._baseline_run is None else bases_of(self._baseline_run)

    # -- steps

    @_hook
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Sample the weights that enter this step, or start to observe its forward."""
        step = steps_taken(trainer)
        anew, self._step = step != self._step, step
        if anew:
            self._epoch, self._batches = trainer.current_epoch, batches_done(trainer)
            self._complaints.late = step != self._began
        due = step != self._run.step and (self._is_due(step) or self._overdue) if anew else self._pending
        if self._sampler is None:
            return
        if self._inputs.records and (due or step == self._began):
            if anew:
                self._sampler.remember()
            self._inputs.step_begins("training_step", batch, batch_idx)
        if not due:
            return
        if self._replays and anew:
            self._pending = self._inputs.probe is None
            if not self._pending:
                self._replay(trainer, step)
        if not self._replays:  # from the start, or because there is nothing to replay
            self._pending, self._overdue = True, False
            if self._sampler.dependence is not None:
                self._sampler.dependence.step_begins(batch)
            self._sampler.watch(self._due_metrics() if anew else None)

    def _is_due(self, step: int) -> bool:
        if self._sampler is None:
            return False
        agree = partial(from_rank_zero, device=self._sampler.device)
        if self._budget is not None:
            return self._budget(step, self._run.cost, self._run.samples, agree)
        if not self._schedule.given:
            return self._schedule(step)
        due, failure = False, None
        if rank() == 0:
            # asked here alone: a sample that some ranks take and others do not leaves the first ones waiting
            try:
                due = self._schedule(step)
            except Exception as error:
                failure = error
        due = bool(agree(int(due)))
        if failure is not None:
            self._complaints.report("`schedule` failed", failure, f"first at step {step}")
        return due

    @_hook
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Stop observing: gradient checkpointing calls attention again in backward."""
        if self._sampler is None:
            return
        if pl_module.automatic_optimization:
            self._inputs.step_ends()
        self._sampler.pause()
        if self._pending and not self._replays:
            with self._complaints.about("training's backward could not be heard"):
                self._sampler.differentiates(loss_factor(trainer, loss))

    @_hook
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Run what compiled code hid, and go on observing where more forward may follow."""
        if self._replays or self._sampler is None or not self._pending:
            return
        self._sampler.differentiates(None)
        self._sampler.run_shadows()
        if not pl_module.automatic_optimization:
            self._sampler.watch()

    @_hook
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Take the first sample where the probe was recorded from this very step's batches."""
        if self._replays:
            self._sample_what_was_recorded(trainer)
        elif self._pending and self._sampler is not None and self._run.samples == 0:
            with self._complaints.about("a sample was dropped", f"first at step {self._step}"):
                self._sampler.check_layers()  # before the first update, rather than at the sample's end

    def _sample_what_was_recorded(self, trainer: Any) -> None:
        if self._pending or self._step == self._began:
            # at a session's first step too, due or not: a resumed run then records what a fresh one did
            self._use_recorded()
            self._try_layers()
        if not self._pending:
            return
        self._pending = False
        if self._inputs.probe is not None:
            self._replay(trainer, self._step)
            return
        assert self._sampler is not None
        self._observe_batches(self._inputs.missing(self._sampler))

    @_hook
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Conclude a sample taken from the step's own batches."""
        self._inputs.step_ends()
        if self._replays and not pl_module.automatic_optimization:
            self._sample_what_was_recorded(trainer)  # a step is a batch, with or without an update
        if self._replays or not self._pending or self._sampler is None:
            return
        self._sampler.pause()
        self._sampler.run_shadows()  # where backward was not Lightning's
        if not trainer.fit_loop._should_accumulate():
            self._pending = False
            started = seconds_on(self._sampler.device) - self._sampler.seconds
            self._conclude(trainer, self._step, self._sampler.failure(), started)

    # -- the run ends

    @_hook
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the final weights once all callbacks are done: weight averaging replaces them here."""
        self._stop()
        self._complaints.late = True
        self._run.ended = True
        self._last = after_the_others(trainer, lambda: self._finish(trainer))

    @_hook
    def _finish(self, trainer: Any) -> None:
        """Take the last sample and say what it all cost."""
        step, self._batches = steps_taken(trainer), batches_done(trainer)
        known = self._sampler is not None and self._inputs.probe is not None
        if self._replays and known and self._run.step != step:
            self._replay(trainer, step, final=True)
        run = self._run
        if run.samples and trainer.is_global_zero:
            whole = time.perf_counter() - self._started
            lightning_logger(trainer).info(
                f"GeometryMonitor: {run.samples} samples in {run.cost:.1f} s "
                f"({100 * run.cost / max(whole, 1e-9):.1f} % of the run). {self._logger_sinks.places}"
            )

    @_hook
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave nothing behind, in the model or open: Lightning calls no `teardown` after an exception."""
        self._end(trainer)

    @_hook
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close what was opened."""
        if stage == "fit":
            self._end(trainer)

    def _end(self, trainer: Any) -> None:
        self._stop()
        self._logger_sinks.close()
        if self._last is not None:
            trainer.callbacks[:] = [callback for callback in trainer.callbacks if callback is not self._last]
            self._last = None

    def _stop(self) -> None:
        self._inputs.stop()
        if self._sampler is not None:
            self._sampler.stop()
        self._eagerly.close()
        self._pending = False

    def _open(self, trainer: Any) -> None:
        """Open the loggers; without one, all monitors of a run share the directory of its record."""
        monitors = [c for c in trainer.callbacks if isinstance(c, GeometryMonitor)]
        versions = [version for m in (self, *monitors) if (version := m._run.version) is not None]
        self._logger_sinks.open(trainer, self._resumed_at, next(iter(versions), None))
        self._run.version = self._logger_sinks.version or self._run.version

    # -- samples

    def _replay(self, trainer: Any, step: int, *, final: bool = False) -> None:
        assert self._sampler is not None
        started = seconds_on(self._sampler.device)
        error: Exception | None
        try:
            share = self._inputs.share(self._sampler.device)
            due = self._due_metrics(final=final)
            error = self._sampler.replay(share, due, self._inputs.unrecorded)
        except Exception as failure:  # the other ranks wait all the same
            error = failure
        self._conclude(trainer, step, error, started, final=final)
        if self._sampler is not None:
            self._sampler.forget()

    def _due_metrics(self, *, final: bool = False) -> tuple[str, ...]:
        """What the next sample measures."""
        # two batches of the same weights differ as much as 60 steps of training do
        possible = (name for name in self._metrics if self._replays or not needs_probe(name))
        return self._clocks.due(possible, self._run.samples, final=final)

    def _conclude(
        self, trainer: Any, step: int, error: Exception | None, started: float, *, final: bool = False
    ) -> None:
        """Merge the sample over ranks, make its record, send it everywhere."""
        assert self._sampler is not None
        run, samples = self._run, self._run.samples
        run.step = step
        about = self._complaints.about("a sample was dropped", f"first at step {step}")
        with about, self._noting(trainer, step):
            try:
                computed = self._sampler.conclude(error, run.baseline, run.previous)
            except NoDataError as reason:
                self._observe_batches(reason)
                return
            if computed.broken:
                self._complaints.report(
                    "activations are not finite",
                    FloatingPointError(
                        f"NaN or infinity in {some(computed.broken)}; what it spoils has no value"
                    ),
                    f"first at step {step}",
                )
            run.models = list(self._sampler.models)
            self._inputs.keep(run.models)
            if run.samples == 0 and self._baseline_run is not None:
                check_bases(run.baseline, computed.bases, self._baseline_run)
            record = self._record(computed, step, started, final)
            self.last_record = record
            run.samples += 1
            run.summaries = self._summaries(record, self._sampler.due)
            trainer.callback_metrics.update(_tensors(run.summaries))
            if trainer.is_global_zero:
                self._open(trainer)
                self._logger_sinks.write(record, final=final)
        run.cost += seconds_on(self._sampler.device) - started
        if run.samples == samples == 0:
            self._give_up_in_vain()

    def _give_up_in_vain(self) -> None:
        """Stop to look for attention after a few samples that saw none; the same on every rank."""
        assert self._sampler is not None
        self._vain += self._sampler.saw_nothing
        if from_rank_zero(int(self._vain >= _IN_VAIN), self._sampler.device):
            self._complaints.say(f"no attention was seen in {_IN_VAIN} samples, so that no more are taken")
            self._stop()
            self._inputs.probe = self._sampler = None

    def _observe_batches(self, reason: LookupError) -> None:
        """Observe training itself from now on: what could be replayed does not begin at the data."""
        self._complaints.say(
            'there is nothing to replay that begins at the data: `source="batch"` is used', str(reason)
        )
        self._replays, self._overdue = False, True
        self._inputs.stop()
        self._inputs.probe = None

    @contextlib.contextmanager
    def _noting(self, trainer: Any, step: int) -> Iterator[None]:
        """Let a run without samples say that the monitor was there, and why it has none."""
        try:
            yield
        except Exception as error:
            self._note_dropped(trainer, step, error)
            raise

    def _note_dropped(self, trainer: Any, step: int, error: Exception) -> None:
        if self._run.samples == 0:
            self._run.dropped += 1
            if trainer.is_global_zero:
                self._open(trainer)
                reason = f"{type(error).__name__}: {error}"
                self._logger_sinks.note(Dropped(self._name, self._run.dropped, reason), step)

    def _summaries(self, record: GeometryRecord, due: tuple[str, ...]) -> dict[str, float]:
        """Model summaries by tag: the sample's, NaN for one that was due and has no value any more.

        Those of metrics on a slower clock stay: a resumed run's EarlyStopping needs them.
        """
        lost = {tag for tag in self._run.summaries if tag.rpartition("/")[2] in due}
        values = {f"{self._name}/{key}": value for key, value in record.summaries().items()}
        return {**self._run.summaries, **dict.fromkeys(lost, math.nan), **values}

    def _record(self, computed: Computed, step: int, started: float, final: bool) -> GeometryRecord:
        assert self._sampler is not None
        run = self._run
        first = run.samples == 0
        if self._replays:
            run.previous = {s: {r: u.cpu() for r, u in roles.items()} for s, roles in computed.bases.items()}
        if run.baseline is None:
            run.baseline = run.previous
        model = ", ".join(map(class_name, self._sampler.models.values()))
        return GeometryRecord(
            computed.stacks,
            {"model": model, "stacks": computed.structure},
            computed.matrices() if first or final else {},
            step=step,
            epoch=self._epoch,
            batches_seen=self._batches,
            wall_time=time.time(),
            cost_seconds=seconds_on(self._sampler.device) - started,
            probe=self._inputs.fingerprint,
            coverage=self._sampler.coverage.as_dict(),
            # once a key, always a key: a chart that ends where all is well again would mislead
            coverage_shown=f"{self._name}/coverage" in run.summaries,
        )

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What the run's next session needs, in containers that a weights-only load accepts."""
        if self._budget is not None:
            self._run.elapsed = self._budget.elapsed
        return self._run.state_dict() | self._inputs.state_dict(inputs=self._probe_in_checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, or start anew from one that another version wrote."""
        try:
            run = RunState.from_state_dict(state_dict)
            self._inputs.load_state_dict(state_dict)
        except Exception as error:
            self._inputs = ProbeSource(self._given_probe, *self._probe_limits, self._complaints)
            self._complaints.say(
                "the checkpoint's state of the monitor cannot be used",
                f"{type(error).__name__}: {error}. Probe, baseline and costs start anew",
            )
        else:
            self._run = run


def _tensors(values: Mapping[str, float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}
