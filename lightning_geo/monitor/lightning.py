"""The Lightning callback: its hooks lead to the run of their Trainer, see :mod:`.run`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

from lightning_geo.monitor._lightning import CallbackBase, steps_taken
from lightning_geo.monitor.run import Run
from lightning_geo.monitor.runs_by_trainer import RunsByTrainer
from lightning_geo.monitor.settings import Settings
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.warn_once import Complaints

__all__ = ["GeometryMonitor"]

#: Methods of the LightningModule that Lightning gives to every callback.
_MODULES_OWN = ("log", "log_dict")

Hook = TypeVar("Hook", bound=Callable[..., None])


def _hook(hook: Hook) -> Hook:
    """A hook of the callback: on its own Trainer's run, and what fails in it does not stop training."""

    @functools.wraps(hook)
    def run(self: GeometryMonitor, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self._runs.of(trainer, self._new_run)
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
            ``subspace``, ``stream`` and ``head``. ``weights``, ``projection``, ``gates``, ``score_spectra``
            and ``importance`` are measured where they are named.
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
        self._settings = Settings.of(
            every_n_steps=every_n_steps,
            schedule=schedule,
            max_overhead=max_overhead,
            metrics=metrics,
            layers=layers,
            rank=rank,
            source=source,
            probe=probe,
            probe_size=probe_size,
            probe_tokens=probe_tokens,
            probe_in_checkpoint=probe_in_checkpoint,
            module=module,
            baseline=baseline,
            special_token_ids=special_token_ids,
            max_queries=max_queries,
            weights_every_n_samples=weights_every_n_samples,
            importance_every_n_samples=importance_every_n_samples,
            loss_fn=loss_fn,
            scalars=scalars,
            strict=strict,
            name=name,
        )
        self._complaints = Complaints(strict)
        self._runs = RunsByTrainer(self._new_run())

    def _new_run(self) -> Run:
        return Run(self._settings, self._complaints)

    @property
    def _run(self) -> Run:
        """That of the Trainer whose hook was called last."""
        return self._runs.current

    @property
    def last_record(self) -> GeometryRecord | None:
        """The last sample of the current run; None before the first."""
        return self._run.samples.last_record

    @property
    def state_key(self) -> str:
        """One state per name."""
        return self._generate_state_key(name=self._settings.name)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle of the monitor keeps: its arguments and its run's state, but no model."""
        return {name: value for name, value in vars(self).items() if name not in _MODULES_OWN}

    # -- the run begins

    @_hook
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start anew, unless `fit` is called again to go on; a checkpoint's state comes afterwards."""
        if stage != "fit":
            return
        self._complaints.late = False
        self._run.stop()
        self._run.samples.outlets.close()  # where an earlier fit ended without any of the hooks that do so
        if steps_taken(trainer) == 0:
            self._runs.current = self._run.anew()

    @_hook
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what can be checked before anything runs; from here on the module is complete."""
        self._run.fit_starts(trainer, pl_module)

    @_hook
    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the probe from the validation data: runs over the same data then share it."""
        self._run.sanity_check_starts()

    @_hook
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record what the sanity check calls."""
        if trainer.sanity_checking:
            self._run.validation_batch_starts(batch, batch_idx)

    @_hook
    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Leave the models alone between batches."""
        self._run.validation_batch_ended()

    @_hook
    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Use what was recorded."""
        self._run.sanity_check_ended()

    @_hook
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Go on from a checkpoint, or try the given probe."""
        self._run.training_starts(trainer)

    # -- a step

    @_hook
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Sample the weights that enter this step, or start to observe its forward."""
        self._run.batch_starts(trainer, batch, batch_idx)

    @_hook
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Stop observing: gradient checkpointing calls attention again in backward."""
        self._run.backward_starts(trainer, pl_module, loss)

    @_hook
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Run what compiled code hid, and go on observing where more forward may follow."""
        self._run.backward_ended(pl_module)

    @_hook
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Take the first sample where the probe was recorded from this very step's batches."""
        self._run.optimizer_starts(trainer)

    @_hook
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Conclude a sample taken from the step's own batches."""
        self._run.batch_ended(trainer, pl_module)

    # -- the run ends

    @_hook
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Have the final weights measured once everybody is done: weight averaging replaces them here."""
        self._run.training_ends(trainer, partial(self._finish, trainer))

    @_hook
    def _finish(self, trainer: Any) -> None:
        """Take the last sample and say what it all cost."""
        self._run.finish(trainer)

    @_hook
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave nothing behind, in the model or open: Lightning calls no `teardown` after an exception."""
        self._run.end()
        self._let_go()

    @_hook
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close what was opened."""
        if stage == "fit":
            self._run.end()
        self._let_go()

    def _let_go(self) -> None:
        """Keep no model alive, and by it no Trainer: the monitor may live on, and be used for other runs."""
        self._run.samples.sampler = None
        for name in _MODULES_OWN:
            vars(self).pop(name, None)

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What the run's next session needs, in containers that a weights-only load accepts."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, or start anew from one that another version wrote."""
        self._run.samples.load_state_dict(state_dict)
