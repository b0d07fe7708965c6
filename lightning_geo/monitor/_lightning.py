"""Lightning, whichever package the user imported: the callback's base class, and a Trainer's public part."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lightning_geo.utils._lightning import batches_done
from lightning_geo.utils.progress_bars import LineLogger

if TYPE_CHECKING:
    from pytorch_lightning import Callback

__all__ = [
    "CallbackBase",
    "after_the_others",
    "checkpoint_folder",
    "lightning_logger",
    "monitors",
    "steps_taken",
]

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.partition(".")[0]) is not None


def _loaded() -> list[ModuleType]:
    return [sys.modules[name] for name in _PACKAGES if hasattr(sys.modules.get(name), "Callback")]


if TYPE_CHECKING:
    CallbackBase = Callback
else:
    if not _loaded():
        importlib.import_module(next(filter(_installed, _PACKAGES), _PACKAGES[0]))

    class CallbackBase(*(module.Callback for module in _loaded())):
        """A callback of each Lightning that was imported before the monitor was first used.

        A Trainer takes a bare callback, and a LightningCLI any, only as an instance of its own package's
        class; to import both packages for that would cost a user seconds.
        """


class _EndOfTraining:
    """Stands in for a strategy's `on_train_end`: calls it, then what monitors have to do.

    Args:
        strategy: Whose.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        #: one that somebody has set on the instance
        self._set = vars(strategy).get("on_train_end")
        self._own = strategy.on_train_end
        self.functions: list[Callable[[], object]] = []

    def __call__(self) -> None:
        self._own()
        for function in tuple(self.functions):
            function()

    def stand_back(self) -> None:
        """Leave the strategy as it was."""
        if vars(self._strategy).get("on_train_end") is self:
            del self._strategy.on_train_end
            if self._set is not None:
                self._strategy.on_train_end = self._set

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._own, memo)  # the copy's strategy has nothing of ours

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _itself, (self._own,)


def _itself(value: Any) -> Any:
    return value


def after_the_others(trainer: Any, function: Callable[[], object]) -> Callable[[], None]:
    """Run ``function`` at the very end of training, while the model is still on its device.

    To be called from one's own `on_train_end`. Callbacks, the LightningModule and the strategy have their
    `on_train_end` in this order, and each may replace the weights: the strategy's is the last thing that
    Lightning calls before `Strategy.teardown` moves the model to the CPU, after which `on_fit_end` and
    `teardown` could not measure it as it was trained (checked on 2.6). That hook is public, so an instance
    attribute stands in for it until it was called.

    Returns:
        What undoes it, whether ``function`` ran or not; harmless when done twice.
    """
    end = vars(trainer.strategy).get("on_train_end")
    if not isinstance(end, _EndOfTraining):
        end = trainer.strategy.on_train_end = _EndOfTraining(trainer.strategy)
    end.functions.append(function)

    def undo() -> None:
        if function in end.functions:
            end.functions.remove(function)
        if not end.functions:
            end.stand_back()

    return undo


def lightning_logger(trainer: Any) -> LineLogger:
    """The logger below that of the trainer's package, so that lines appear where Lightning's do."""
    package = next((name for name in _PACKAGES if type(trainer).__module__.startswith(name)), _PACKAGES[0])
    return LineLogger(logging.getLogger(f"{package}.callbacks.geometry_monitor"))


def checkpoint_folder(trainer: Any) -> str:
    """Return where the trainer keeps checkpoints: its ModelCheckpoint's folder, else one in its root."""
    callback = trainer.checkpoint_callback
    folder = getattr(callback, "dirpath", None)
    return str(folder) if folder else f"{trainer.default_root_dir}/checkpoints"


def monitors(trainer: Any, prefix: str) -> bool:
    """Whether a callback, or a scheduler of the learning rate, decides by a metric of that prefix."""
    readers = (*trainer.callbacks, *trainer.lr_scheduler_configs)
    keys = (getattr(reader, "monitor", None) for reader in readers)
    return any(isinstance(key, str) and key.startswith(prefix) for key in keys)


def steps_taken(trainer: Any) -> int:
    """Optimizer steps so far; in manual optimization, where a step may be many, batches.

    At each batch the same as ``_batches_that_stepped``, at which Lightning's own monitors log, but right
    from the start of training on: that one lags behind until a resumed run's first batch.
    """
    if trainer.lightning_module.automatic_optimization:
        return int(trainer.global_step)
    return batches_done(trainer)
