"""A ``transformers.Trainer`` as the host of a monitor."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from lightning_geo.monitor.experiments import Experiment
from lightning_geo.monitor.host import Host
from lightning_geo.monitor.state import RunState
from lightning_geo.monitor.wrappers import without_wrappers
from lightning_geo.utils._deepspeed import inside_of_engine, steps_by_engine
from lightning_geo.utils._torch import is_compiled_module, unwrapped
from lightning_geo.utils._transformers import callbacks_of, logs_to_wandb, writer_of
from lightning_geo.utils.progress_bars import script_logger

__all__ = ["TrainerHost"]


class TrainerHost(Host):
    """Answers for one call of ``Trainer.train``.

    Args:
        args: The TrainingArguments.
        state: The TrainerState, which this call of ``train`` made.
        model: Without wrappers.
        trainer: The Trainer; ``None`` where it could not be found.
    """

    log = script_logger()

    def __init__(self, args: Any, state: Any, model: nn.Module, trainer: Any) -> None:
        self.args, self.state = args, state
        wrapped = model if trainer is None else trainer.model_wrapped
        inner = without_wrappers(wrapped)
        # only there do hooks see the calls of a model that is compiled as a whole
        compiled = is_compiled_module(inner) and unwrapped(inner) is model
        self._wrapped = weakref.ref(wrapped)
        self._module = weakref.ref(inner if compiled else without_wrappers(model))
        self._trainer = (lambda: None) if trainer is None else weakref.ref(trainer)
        self._writers: list[Any] = []
        self._accumulates = False
        #: batches of this and of earlier sessions
        self.count: int = self.step * args.gradient_accumulation_steps
        self.summaries: dict[str, float] = {}
        #: what a finding asked for
        self.stops, self.saves = False, False

    @property
    def trainer(self) -> Any:
        """The Trainer; ``None`` if it could not be found, or is no more."""
        return self._trainer()

    @property
    def step(self) -> int:
        step: int = self.state.global_step
        return step

    @property
    def epoch(self) -> int:
        return int(float(self.state.epoch or 0))

    @property
    def batches(self) -> int:
        return self.count

    @property
    def alive(self) -> bool:
        return self._module() is not None

    @property
    def module(self) -> nn.Module:
        module = self._module()
        assert module is not None
        return module

    @property
    def tokenizer_owners(self) -> tuple[Any, ...]:
        return self.trainer, self.module

    @property
    def wrapped(self) -> nn.Module:
        wrapped = self._wrapped()
        return self.module if wrapped is None else wrapped

    @property
    def device(self) -> torch.device:
        device: torch.device = self.args.device
        return device

    def forward_context(self) -> AbstractContextManager[object]:
        trainer = self.trainer
        return contextlib.nullcontext() if trainer is None else trainer.compute_loss_context_manager()

    @property
    def accumulates(self) -> bool:
        return self._accumulates

    @accumulates.setter
    def accumulates(self, accumulates: bool) -> None:
        self._accumulates = accumulates

    def updates_in_backward(self, optimizer: torch.optim.Optimizer | None = None) -> bool:
        """Whether the backward of a step ends with its update, before the Trainer announces one: DeepSpeed's.

        Args:
            optimizer: That which begins; ``None`` to ask for any.
        """
        if optimizer is not None:
            return steps_by_engine(self.wrapped, optimizer)
        return inside_of_engine(self.wrapped) is not None

    @property
    def is_rank_zero(self) -> bool:
        return bool(self.state.is_world_process_zero)

    @property
    def callbacks(self) -> list[Any]:
        """The Trainer's callbacks."""
        return [] if self.trainer is None else callbacks_of(self.trainer)

    @property
    def loggers(self) -> Sequence[Any]:
        experiments: list[Any] = []
        for callback in self.callbacks:
            writer = writer_of(callback)
            if writer is not None:
                self._writers.append(writer)
                experiments.append(Experiment(writer))
            elif logs_to_wandb(callback):
                run = getattr(sys.modules.get("wandb"), "run", None)
                experiments += [] if run is None else [Experiment(run)]
        return experiments

    @property
    def root_dir(self) -> str:
        return str(self.args.output_dir)

    @property
    def estimated_steps(self) -> float | None:
        return float(self.state.max_steps)

    def neighbours(self) -> Iterable[RunState]:
        runs = (getattr(callback, "run_of", lambda state: None)(self.state) for callback in self.callbacks)
        return [run.samples.state for run in runs if run is not None]

    def show(self, summaries: Mapping[str, float]) -> None:
        self.summaries = dict(summaries)

    def stop_training(self) -> None:
        self.stops = True

    def save_checkpoint(self, name: str) -> None:
        self.saves = True

    def close(self) -> None:
        """Close writers that their own callback has closed and let go: the last sample opened them anew."""
        held = [writer_of(callback) for callback in self.callbacks]
        for writer in self._writers:
            if not any(writer is other for other in held):
                writer.close()
        self._writers.clear()
