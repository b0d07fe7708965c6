"""A Lightning Trainer as the host of a monitor."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.monitor._lightning import (
    checkpoint_folder,
    lightning_logger,
    monitors,
    steps_taken,
)
from lightning_geo.monitor.host import Host
from lightning_geo.monitor.runs_by_trainer import RunsByTrainer
from lightning_geo.monitor.state import RunState
from lightning_geo.utils._lightning import (
    accumulates,
    add_callback_metrics,
    batches_done,
    loss_factor,
)
from lightning_geo.utils._torch import is_compiled_function
from lightning_geo.utils.progress_bars import LineLogger

__all__ = ["LightningHost"]

#: Reason and remedy if the LightningModule is compiled as a whole.
_SEALED = (
    "the LightningModule is compiled as a whole, which hides the calls of the models in it. Compile the "
    "model inside instead (`self.model.compile()` in `configure_model`), or give `probe=`"
)


class LightningHost(Host):
    """Answers for a Trainer of either package.

    Args:
        trainer: The Trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = weakref.ref(trainer)

    @property
    def trainer(self) -> Any:
        """The Trainer; None if it is no more."""
        return self._trainer()

    @property
    def step(self) -> int:
        """Optimizer steps; in manual optimization, where a step may be many, batches."""
        return steps_taken(self.trainer)

    @property
    def epoch(self) -> int:
        """The Trainer's current epoch."""
        return int(self.trainer.current_epoch)

    @property
    def batches(self) -> int:
        """Batches that the Trainer has processed."""
        return batches_done(self.trainer)

    @property
    def alive(self) -> bool:
        """Whether the Trainer is still there."""
        return self.trainer is not None

    @property
    def module(self) -> nn.Module:
        """The LightningModule."""
        module: nn.Module = self.trainer.lightning_module
        return module

    @property
    def tokenizer_owners(self) -> tuple[Any, ...]:
        """The LightningModule and the data module."""
        return self.module, getattr(self.trainer, "datamodule", None)

    @property
    def has_steps(self) -> bool:
        """True: a LightningModule is given batches, and contains the models."""
        return True

    @property
    def sealed(self) -> str:
        """Whether, and why, ``training_step`` runs compiled."""
        return _SEALED if is_compiled_function(self.trainer.lightning_module.training_step) else ""

    @property
    def wrapped(self) -> nn.Module:
        """The LightningModule as the strategy wrapped it."""
        wrapped: nn.Module | None = self.trainer.strategy.model
        return self.module if wrapped is None else wrapped

    @property
    def device(self) -> torch.device:
        """The strategy's device."""
        device: torch.device = self.trainer.strategy.root_device
        return device

    def forward_context(self) -> AbstractContextManager[object]:
        """Return the forward context of the Trainer's precision."""
        context: AbstractContextManager[object] = self.trainer.precision_plugin.forward_context()
        return context

    @property
    def updates_by_step(self) -> bool:
        """Whether optimization is automatic."""
        return bool(self.trainer.lightning_module.automatic_optimization)

    @property
    def accumulates(self) -> bool:
        """Whether ``accumulate_grad_batches`` goes on with the next batch."""
        return accumulates(self.trainer)

    def loss_factor(self, loss: Tensor | None) -> Tensor | None:
        """Return the loss scale over ``accumulate_grad_batches``."""
        return None if loss is None else loss_factor(self.trainer, loss)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is global rank 0."""
        return bool(self.trainer.is_global_zero)

    @property
    def loggers(self) -> Sequence[Any]:
        """The Trainer's loggers."""
        loggers: Sequence[Any] = self.trainer.loggers
        return loggers

    @property
    def root_dir(self) -> str:
        """The Trainer's ``default_root_dir``."""
        return str(self.trainer.default_root_dir)

    @property
    def fast_dev_run(self) -> bool:
        """Whether the Trainer writes nothing."""
        return bool(self.trainer.fast_dev_run)

    @property
    def estimated_steps(self) -> float | None:
        """The Trainer's estimate."""
        steps: float = self.trainer.estimated_stepping_batches
        return steps

    @property
    def log(self) -> LineLogger:
        """A logger below that of the Trainer's package."""
        return lightning_logger(self.trainer)

    def neighbours(self) -> Iterable[RunState]:
        """Return the states of the runs of all monitors among the Trainer's callbacks."""
        runs = (getattr(callback, "_runs", None) for callback in self.trainer.callbacks)
        known = [run.known(self.trainer) for run in runs if isinstance(run, RunsByTrainer)]
        return [run.samples.state for run in known if run is not None]

    def show(self, summaries: Mapping[str, float]) -> None:
        """Put summaries into ``callback_metrics``."""
        add_callback_metrics(self.trainer, summaries)

    def reads(self, prefix: str) -> bool:
        """Whether a callback or a scheduler monitors such a key."""
        return monitors(self.trainer, prefix)

    def stop_training(self) -> None:
        """Set ``should_stop``, as EarlyStopping does."""
        self.trainer.should_stop = True

    def save_checkpoint(self, name: str) -> None:
        """Save a checkpoint beside those of the Trainer's ModelCheckpoint."""
        trainer = self.trainer
        trainer.save_checkpoint(f"{checkpoint_folder(trainer)}/{name}-step={trainer.global_step}.ckpt")
