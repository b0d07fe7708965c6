"""What one fit of a run did, as its callbacks saw it, and snapshots of the model."""

from __future__ import annotations

import copy
import time
import types
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_geo.observe.replay.call_hooks import _take_off
from run_machine.descriptions import WIDTH
from run_machine.models import Module

__all__ = ["Ends", "Session", "Snapshots", "Witness", "snapshot", "snapshot_of_model", "steps_of"]


@dataclass
class Session:
    """What one fit of a run did, as its callbacks saw it.

    Args:
        run: Number of the run.
        begun: Step at which training began; None where it did not.
        entered: Steps that a batch entered, each once.
        finished: Whether all callbacks had their ``on_train_end``.
        step: The step at its end.
        snapshots: By step, the weights and state that entered it.
        error: What it raised.
        started: When it began, in seconds of the wall clock.
    """

    run: int
    begun: int | None = None
    entered: list[int] = field(default_factory=list)
    finished: bool = False
    step: int = 0
    snapshots: dict[int, Module] = field(default_factory=dict)
    error: str = ""
    started: float = field(default_factory=time.time)


class Witness(pl.Callback):
    """Notes which steps a session entered."""

    session: Session | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.session is not None:
            self.session.begun = steps_of(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        session, step = self.session, steps_of(trainer, pl_module)
        if session is None or step in session.entered:
            return
        session.entered.append(step)


class Snapshots(pl.Callback):
    """Takes a snapshot of each step that a session entered, where monitors stand among the callbacks.

    Another callback may have called the model before they sample it.
    """

    def __init__(self, takes: bool) -> None:
        self.takes = takes
        self.session: Session | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        session, step = self.session, steps_of(trainer, pl_module)
        if self.takes and session is not None and step not in session.snapshots:
            session.snapshots[step] = snapshot(pl_module)


class Ends(pl.Callback):
    """The last of the user's callbacks: notes that training ended."""

    session: Session | None = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.session is not None:
            self.session.finished = True


def snapshot(module: Module) -> Module:
    """A copy without a trainer; activations are detached."""
    memo = {**_uncopied(module), id(module._trainer): None, id(module._fabric): None}
    made: Module = copy.deepcopy(module, memo)
    made._trainer = None
    return made


def _uncopied(module: nn.Module) -> dict[int, Any]:
    """What ``deepcopy`` refuses to copy, and what is in its place."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Tensor) and item.grad_fn is not None:
                    memo[id(item)] = item.detach().clone()
                elif isinstance(item, types.GeneratorType):
                    memo[id(item)] = item
    return memo


def snapshot_of_model(module: Module) -> nn.Module:
    """A copy of what is in the LightningModule, as a user makes a teacher of it, which has run once."""
    inner = module.net if hasattr(module, "net") else module.encoder
    made: nn.Module = copy.deepcopy(inner, _uncopied(inner))
    mask = torch.ones(1, 3, dtype=torch.bool)
    given = mask.long() if hasattr(inner, "embed") else torch.ones(1, 3, WIDTH)
    with torch.no_grad():
        made(given, mask)
    for part in made.modules():
        _take_off(part)  # of what never runs, such as the last layer of `nn.MultiheadAttention`
    return made


def steps_of(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """Optimizer steps so far; in manual optimization batches: one that failed may have stepped before."""
    if module.automatic_optimization:
        return int(trainer.global_step)
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
