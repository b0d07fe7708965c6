"""The interface between the monitor and the loop that trains."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.monitor.state import RunState
from lightning_geo.utils.progress_bars import LineLogger

__all__ = ["Host"]


class Host(ABC):
    """The loop that trains, as the monitor sees it; each trainer has one subclass, in a file of its own.

    The trainer's hooks call :class:`.Run` at a run's events, and pass the host. A host refers to its trainer
    weakly, so that a waiting record does not keep it alive.

    A trainer calls :class:`.Run` in this order: ``fit_starts``, ``training_starts``; for each batch
    ``batch_starts``, where it can ``backward_starts`` and ``backward_ended``, before an update
    ``optimizer_starts``, then ``batch_ended`` and ``deliver``; at the end ``training_ends`` and ``finish``,
    and ``end`` whatever happened.

    Defaults are for loops without the feature.
    """

    # -- where the run stands

    @property
    @abstractmethod
    def step(self) -> int:
        """Optimizer steps taken so far."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """Epochs that are done."""

    @property
    @abstractmethod
    def batches(self) -> int:
        """Batches whose forward and backward are done."""

    @property
    def alive(self) -> bool:
        """Whether the trainer is still there; nobody waits for the record of one that is not."""
        return True

    # -- what it trains

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The module that is trained, without the wrappers of a strategy."""

    @property
    def tokenizer_owners(self) -> Sequence[Any]:
        """Parts of the run that may have its ``tokenizer`` or ``processing_class``."""
        return (self.module,)

    @property
    def has_steps(self) -> bool:
        """Whether ``module`` is given batches by its own methods, and the model is a child of it."""
        return False

    @property
    def sealed(self) -> str:
        """Reason and remedy if a compiled step hides the calls of the models in it; else empty."""
        return ""

    @property
    def wrapped(self) -> nn.Module:
        """The module as the loop calls it: itself, or what a strategy put around it."""
        return self.module

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the process group's backend communicates."""

    def forward_context(self) -> AbstractContextManager[object]:
        """Return the context of a training forward pass: its precision."""
        return contextlib.nullcontext()

    # -- a step

    @property
    def updates_by_step(self) -> bool:
        """Whether each step has one update, rather than being a batch in which the user updates by hand."""
        return True

    @property
    def waits_for_update(self) -> bool:
        """Whether a step's sample is taken just before its update, not at its start: it may have none."""
        return False

    @property
    def accumulates(self) -> bool:
        """Whether the batch that runs adds to gradients only, with no update at its end."""
        return False

    def loss_factor(self, loss: Tensor | None) -> Tensor | None:
        """Return the factor by which the loss was multiplied before the backward pass.

        Args:
            loss: The tensor that backward begins from; ``None`` where the trainer does not pass it.

        Returns:
            ``None`` where it is unknown.
        """
        return None

    # -- where records go

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes what is written once."""
        return True

    @property
    def loggers(self) -> Sequence[Any]:
        """The run's loggers, each with an ``experiment``; see :func:`~lightning_geo.loggers.open_sinks`."""
        return ()

    @property
    @abstractmethod
    def root_dir(self) -> str:
        """The parent of the record's directory where no logger has a place for the record."""

    @property
    def fast_dev_run(self) -> bool:
        """Whether the run is a trial that writes nothing."""
        return False

    @property
    def estimated_steps(self) -> float | None:
        """Length of the run in optimizer steps; -1 or ``None`` if unknown."""
        return None

    @property
    @abstractmethod
    def log(self) -> LineLogger:
        """The logger for lines that a person reads, beside the trainer's own."""

    def neighbours(self) -> Iterable[RunState]:
        """Return the states of the runs of all monitors of this trainer, its own included."""
        return ()

    # -- others act on the samples' numbers

    @abstractmethod
    def show(self, summaries: Mapping[str, float]) -> None:
        """Put model summaries where the trainer's callbacks look for numbers; on every rank."""

    def reads(self, prefix: str) -> bool:
        """Whether the trainer, by a callback for instance, decides by a number with that prefix."""
        return False

    @abstractmethod
    def stop_training(self) -> None:
        """End training after the current step; on every rank."""

    def save_checkpoint(self, name: str) -> None:
        """Save a checkpoint now; on every rank.

        Args:
            name: What its file's name begins with.
        """
        raise NotImplementedError("this loop saves its own checkpoints")
