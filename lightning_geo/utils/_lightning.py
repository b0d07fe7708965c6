"""Private and fragile names of Lightning, each behind one function, for both of its packages.

An update of Lightning that renames one of them is repaired here. ``tests/test_private_names.py`` fails for
every use of such a name elsewhere in the package. Nothing here imports Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "TRAINER",
    "accumulates",
    "add_callback_metrics",
    "batches_done",
    "borrows_forward",
    "is_fabric_module",
    "is_lightning",
    "loss_factor",
    "set_trainer",
    "state_key",
    "trainer_of",
]

#: Attribute in which a LightningModule keeps its Trainer; checked on Lightning 2.6.6.
TRAINER = "_trainer"


def trainer_of(module: nn.Module) -> Any:
    """The Trainer that a LightningModule belongs to; ``None`` for one that has none, and for other modules.

    ``LightningModule.trainer`` raises where there is none. Relies on ``LightningModule._trainer``; checked on
    Lightning 2.6.6.
    """
    return vars(module).get(TRAINER)


def set_trainer(module: nn.Module, trainer: Any) -> None:
    """Let a LightningModule belong to a Trainer, or to a stand-in for one.

    ``LightningModule.trainer = ...`` would hand it to the LightningModules inside too. Relies on
    ``LightningModule._trainer``; checked on Lightning 2.6.6.
    """
    vars(module)[TRAINER] = trainer


def borrows_forward(module: nn.Module) -> bool:
    """Whether a strategy runs a whole training step through a module's ``forward``.

    Strategies that wrap the LightningModule replace its ``forward`` for as long as a step takes. Relies on
    the name ``wrapped_forward`` in ``pytorch_lightning.strategies.strategy``; checked on Lightning 2.6.6.
    """
    return getattr(module.forward, "__name__", "") == "wrapped_forward"


def is_lightning(module: nn.Module) -> bool:
    """Whether a module is a LightningModule, of either package.

    Relies on the class name ``LightningModule``; checked on Lightning 2.6.6.
    """
    return any(kind.__name__ == "LightningModule" for kind in type(module).__mro__)


def is_fabric_module(module: nn.Module) -> bool:
    """Whether ``fabric.setup`` made a module, whose ``module`` is the user's.

    Relies on the name ``_FabricModule`` in ``lightning.fabric.wrappers``; checked on Lightning 2.6.6.
    """
    return any(kind.__name__ == "_FabricModule" for kind in type(module).__mro__)


def batches_done(trainer: Any) -> int:
    """Batches whose forward and backward are done.

    Relies on ``Trainer.fit_loop.epoch_loop.batch_progress``; checked on Lightning 2.6.6.
    """
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)


def accumulates(trainer: Any) -> bool:
    """Whether the batch that runs adds to gradients only, with no optimizer step at its end.

    Relies on ``Trainer.fit_loop._should_accumulate``; checked on Lightning 2.6.6.
    """
    return bool(trainer.fit_loop._should_accumulate())


def add_callback_metrics(trainer: Any, metrics: Mapping[str, float]) -> None:
    """Put numbers where ``EarlyStopping`` looks for them.

    ``trainer.callback_metrics`` takes over the current step's numbers when it is read: the dict behind it is
    written instead, so that the user's own metrics stay what they are without a reader. Relies on
    ``Trainer._logger_connector._callback_metrics``, and reads the metrics where there is none; checked on
    Lightning 2.6.6.
    """
    behind = getattr(getattr(trainer, "_logger_connector", None), "_callback_metrics", None)
    import torch  # readers of runs import this module, and do without

    tensors = {name: torch.tensor(value) for name, value in metrics.items()}
    (behind if isinstance(behind, dict) else trainer.callback_metrics).update(tensors)


def state_key(callback: Any, name: str) -> str:
    """The key of a callback's state in a checkpoint, one for each name.

    Relies on ``Callback._generate_state_key``; checked on Lightning 2.6.6.
    """
    key: str = callback._generate_state_key(name=name)
    return key


def loss_factor(trainer: Any, loss: Tensor) -> Tensor | None:
    """Return the factor by which Lightning multiplied a step's loss before the backward pass.

    Relies on ``DeepSpeedStrategy`` by name and ``precision_plugin.scaler``; checked on Lightning 2.6.6.

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


def _has_strategy(trainer: Any, *names: str) -> bool:
    return any(base.__name__ in names for base in type(trainer.strategy).__mro__)
