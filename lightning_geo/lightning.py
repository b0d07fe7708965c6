"""Lightning, whichever package the user imported: the callback's base class, and what a Trainer is asked."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning import Callback
    from torch import Tensor, nn
    from typing_extensions import Self

__all__ = [
    "AnyCallback",
    "add_callback_metrics",
    "adopt",
    "after_the_others",
    "batches_done",
    "class_name",
    "is_sharded",
    "lightning_logger",
    "loss_factor",
    "steps_taken",
]

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")


class _Unclaimed:
    """Stands where the bases will be: those of a class that begins with ``object`` cannot be replaced."""


if TYPE_CHECKING:
    _Base = Callback
else:
    _Base = _Unclaimed


class AnyCallback(_Base):
    """A callback for every Lightning that is imported by the time an instance is made."""

    # here and not in a subclass, whose signature it would hide
    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        adopt()
        if AnyCallback.__bases__ == (_Unclaimed,):  # a Trainer will want its hooks all the same
            importlib.import_module(next(filter(_installed, _PACKAGES), _PACKAGES[0]))
            adopt()
        return super().__new__(cls)


def adopt() -> None:
    """Become a callback of each Lightning that was imported in the meantime.

    A Trainer takes a bare callback, and a LightningCLI any, only if it is an instance of its own
    package's class; importing both packages for that would cost a user seconds.
    """
    modules = [sys.modules[name] for name in _PACKAGES if name in sys.modules]
    bases = tuple(module.Callback for module in modules if hasattr(module, "Callback"))
    if not set(bases) <= set(AnyCallback.__mro__):
        AnyCallback.__bases__ = bases


adopt()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.partition(".")[0]) is not None


class _Afterwards(AnyCallback):
    """Stands behind all other callbacks while Lightning calls their `on_train_end`."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self._function = function

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._function()


def after_the_others(trainer: Any, function: Callable[[], object]) -> AnyCallback:
    """Run ``function`` once every callback has had its `on_train_end`; to be called from one's own.

    Lightning goes through the list of callbacks itself, so that one that is added on the way has its turn
    (checked on 2.6). Afterwards the model is moved to the CPU: no later hook could measure it.

    Returns:
        What was added; the caller takes it out again.
    """
    last = _Afterwards(function)
    trainer.callbacks.append(last)
    return last


def lightning_logger(trainer: Any) -> logging.Logger:
    """The logger below that of the trainer's package, so that lines appear where Lightning's do."""
    package = next((name for name in _PACKAGES if type(trainer).__module__.startswith(name)), _PACKAGES[0])
    return logging.getLogger(f"{package}.callbacks.geometry_monitor")


def steps_taken(trainer: Any) -> int:
    """Optimizer steps so far; in manual optimization, where a step may be many, batches.

    At each batch the same as ``_batches_that_stepped``, at which Lightning's own monitors log, but right
    from the start of training on: that one lags behind until a resumed run's first batch.
    """
    if trainer.lightning_module.automatic_optimization:
        return int(trainer.global_step)
    return batches_done(trainer)


def add_callback_metrics(trainer: Any, metrics: Mapping[str, Tensor]) -> None:
    """Put numbers where ``EarlyStopping`` looks for them.

    ``trainer.callback_metrics`` takes over the current step's numbers when it is read (checked on 2.6): the
    dict behind it is written instead, so that the user's own metrics stay what they are without a reader.
    """
    behind = getattr(getattr(trainer, "_logger_connector", None), "_callback_metrics", None)
    (behind if isinstance(behind, dict) else trainer.callback_metrics).update(metrics)


def batches_done(trainer: Any) -> int:
    """Batches whose forward and backward are done."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)


def class_name(module: nn.Module) -> str:
    """As the user knows it: compiled and sharded modules have classes of their own."""
    classes = type(getattr(module, "_orig_mod", module)).__mro__
    return next(c.__name__ for c in classes if not c.__name__.startswith("FSDP"))


def is_sharded(trainer: Any) -> bool:
    """Whether parameters are split over ranks, so that an inner module cannot be called on its own."""
    return _has_strategy(trainer, "FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


def _has_strategy(trainer: Any, *names: str) -> bool:
    return any(base.__name__ in names for base in type(trainer.strategy).__mro__)


def loss_factor(trainer: Any, loss: Tensor) -> Tensor | None:
    """What Lightning multiplied a step's loss with before backward, so that gradients are that much larger.

    Args:
        trainer: Of the step.
        loss: What backward begins from.

    Returns:
        The loss scale of the precision plugin over ``accumulate_grad_batches``; ``None`` where an engine of
        its own (DeepSpeed) scales.
    """
    if _has_strategy(trainer, "DeepSpeedStrategy"):
        return None
    factor: Tensor = loss.detach().float().new_ones(())
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        factor = scaler.scale(factor)  # on the device: to read the number would be to wait for it
    scaled: Tensor = factor / trainer.accumulate_grad_batches
    return scaled
