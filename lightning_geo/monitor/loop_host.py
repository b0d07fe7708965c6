"""A loop that a person wrote, as the host of a monitor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from lightning_geo.monitor.experiments import as_logger
from lightning_geo.monitor.forward_context import ForwardContext
from lightning_geo.monitor.host import Host
from lightning_geo.monitor.wrappers import without_wrappers
from lightning_geo.observe.replay.undisturbed_run import device_of
from lightning_geo.utils._deepspeed import steps_by_engine
from lightning_geo.utils._transformers import accumulates_in_accelerate
from lightning_geo.utils.progress_bars import script_logger
from lightning_geo.utils.ranks import rank

__all__ = ["LoopHost"]


class LoopHost(Host):
    """Answers for a loop that tells no more than that a step is done.

    Args:
        model: As the loop calls it.
        logdir: Where to open a writer; ``None`` for none.
        loggers: The user's own.
    """

    module: nn.Module = None  # type: ignore[assignment]
    device: torch.device = None  # type: ignore[assignment]
    root_dir = "."
    epoch = 0
    waits_for_update = True
    log = script_logger()

    def __init__(
        self, model: nn.Module, logdir: str | os.PathLike[str] | None, loggers: Sequence[Any]
    ) -> None:
        self._called = model
        self.module = without_wrappers(model)
        self.device = device_of(self.module)
        self.context = ForwardContext(self.device)
        self.count = 0
        self.stopped = False
        self.summaries: dict[str, float] = {}
        self._logdir = logdir
        self._loggers = list(loggers)
        self._writer: Any = None

    @property
    def step(self) -> int:
        return self.count

    @property
    def batches(self) -> int:
        return self.count

    @property
    def wrapped(self) -> nn.Module:
        return self._called

    def forward_context(self) -> AbstractContextManager[object]:
        return self.context()

    @property
    def accumulating(self) -> bool:
        """Whether accelerate lets this update be."""
        return accumulates_in_accelerate(self._called)

    def updated_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer has parameters of the model, or DeepSpeed's copies of them."""
        own = set(map(id, self.module.parameters()))
        held = any(id(p) in own for group in optimizer.param_groups for p in group["params"])
        return held or steps_by_engine(self._called, optimizer)

    @property
    def is_rank_zero(self) -> bool:
        return rank() == 0

    @property
    def loggers(self) -> Sequence[Any]:
        if self._logdir is not None and self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(self._logdir)
            self._loggers = [as_logger(self._writer)]
        return self._loggers

    def show(self, summaries: Mapping[str, float]) -> None:
        self.summaries = dict(summaries)

    def stop_training(self) -> None:
        self.stopped = True

    def close(self) -> None:
        """Close the writer that was opened here."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
