"""The loggers of runs by name: real ones, and some that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

__all__ = ["LOGGERS", "Memory"]


class Memory(Logger):
    """Keeps what it gets, and has no directory."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """There are none."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((step, {name: float(value) for name, value in metrics.items()}))


class Homeless(Memory):
    """Fails when it is asked for its directory."""

    @property
    def log_dir(self) -> str:
        raise ConnectionError("the server is down")


class Down(Memory):
    """Refuses the monitor's numbers."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any("geometry" in name for name in metrics):
            raise ConnectionError("the server is down")
        super().log_metrics(metrics, step)


def _wandb(folder: Path) -> WandbLogger:
    """An offline run of W&B's, beside others; one in the same folder goes on with it."""
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True)
    own = "-".join(folder.parts[-3:])  # no two that are open may have the same
    options: dict[str, Any] = {"id": own, "reinit": "create_new", "settings": settings}
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(save_dir=folder, project="run_machine", offline=True, **options)


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "wandb": _wandb,
    "tensorboard": lambda folder: TensorBoardLogger(folder, "board", version=0),
    "csv": lambda folder: CSVLogger(folder, "csv", version=0),
    "memory": lambda folder: Memory(),
    "homeless": lambda folder: Homeless(),
    "down": lambda folder: Down(),
}
