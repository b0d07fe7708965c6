"""The methods that Lightning calls on a callback, each led to the run of its Trainer; see :mod:`.run`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from lightning_geo.monitor._lightning import CallbackBase, after_the_others, steps_taken
from lightning_geo.monitor.arguments import MonitorArguments
from lightning_geo.monitor.lightning_host import LightningHost
from lightning_geo.monitor.run import Run
from lightning_geo.monitor.runs_by_trainer import RunsByTrainer
from lightning_geo.utils._lightning import state_key
from lightning_geo.utils.errors import call_all

__all__ = ["RunHooks"]

#: Methods of the LightningModule that Lightning gives to every callback.
_MODULES_OWN = ("log", "log_dict")

_Hook = TypeVar("_Hook", bound=Callable[..., None])


def _hook(hook: _Hook) -> _Hook:
    """Lead a hook to the run of its own Trainer; an error in it does not stop training."""

    @functools.wraps(hook)
    def run(self: RunHooks, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self._runs.of(trainer, self._new_run)
        with self._warn_once.about(f"`{hook.__name__}` failed"):
            hook(self, trainer, *args, **kwargs)

    return run  # type: ignore[return-value]


class RunHooks(MonitorArguments, CallbackBase):
    """A callback that measures what its arguments ask for; one run for each Trainer."""

    def _prepare(self) -> None:
        self._runs = RunsByTrainer(self._new_run())

    def _new_run(self) -> Run:
        return Run(self._settings, self._warn_once)

    @property
    def _run(self) -> Run:
        """The run of the Trainer whose hook was called last."""
        return self._runs.current

    def __getstate__(self) -> dict[str, Any]:
        """Return the content of a copy or a pickle: arguments and the run's state, but no model."""
        return {name: value for name, value in vars(self).items() if name not in _MODULES_OWN}

    # -- the run begins

    @_hook
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start anew, unless `fit` is called again to go on; a checkpoint's state comes afterwards."""
        if stage != "fit":
            return
        self._warn_once.late = False
        before = self._run
        if steps_taken(trainer) == 0:
            self._runs.current = before.anew()
        # where an earlier fit ended without any of the hooks that do so
        call_all(before.samples.delivery.flush, before.stop, before.samples.sinks.close)

    @_hook
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what can be checked before anything runs; from here on the module is complete."""
        self._run.fit_starts(LightningHost(trainer))

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
        self._run.training_starts(LightningHost(trainer))

    # -- a step

    @_hook
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Sample the weights that enter this step, or start to observe its forward."""
        self._run.batch_starts(LightningHost(trainer), batch, batch_idx)

    @_hook
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Stop observing: gradient checkpointing calls attention again in backward."""
        self._run.backward_starts(LightningHost(trainer), loss)

    @_hook
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Run what compiled code hid, and go on observing where more forward may follow."""
        self._run.backward_ended(LightningHost(trainer))

    @_hook
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Take the first sample where the probe was recorded from this very step's batches."""
        self._run.optimizer_starts(LightningHost(trainer))

    @_hook
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Conclude a sample taken from the step's own batches."""
        host = LightningHost(trainer)
        self._run.batch_ended(host)
        self._run.deliver(host)

    # -- others read what samples showed

    @_hook
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Have the last sample's numbers there when validation ends, where callbacks decide by them."""
        self._run.samples.delivery.flush()

    @_hook
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The same where an epoch ends."""
        self._run.samples.delivery.flush()

    # -- the run ends

    @_hook
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Have the final weights measured once everybody is done: weight averaging replaces them here."""
        # first, since all ranks meet there
        self._run.training_ends(after_the_others(trainer, partial(self._finish, trainer)))

    @_hook
    def _finish(self, trainer: Any) -> None:
        """Take the last sample and say what it all cost."""
        self._run.finish(LightningHost(trainer))

    @_hook
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave nothing behind, in the model or open: Lightning calls no `teardown` after an exception."""
        call_all(self._run.end, self._let_go)

    @_hook
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close what was opened."""
        call_all(*[self._run.end] * (stage == "fit"), self._let_go)

    def _let_go(self) -> None:
        """Keep no model alive, and by it no Trainer: the monitor may live on, and be used for other runs."""
        self._run.samples.sampler = None
        for name in _MODULES_OWN:
            vars(self).pop(name, None)

    # -- checkpoints

    @property
    def state_key(self) -> str:
        """One state per name."""
        return state_key(self, self._settings.name)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in containers that a weights-only load accepts."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, or start anew from one that another version wrote."""
        self._run.samples.load_state_dict(state_dict)
