"""What loops outside Lightning log to, as the sinks of :mod:`lightning_geo.loggers` expect it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_geo.utils._tensorboard import is_summary_writer
from lightning_geo.utils.errors import ArgumentTypeError

__all__ = ["Experiment", "as_logger"]


@dataclass(frozen=True)
class Experiment:
    """A writer or run that no logger wraps.

    Args:
        experiment: A ``SummaryWriter`` or a ``wandb.Run``.
    """

    experiment: Any


def as_logger(given: Any) -> Any:
    """Return what a user logs to as a logger.

    Args:
        given: A ``SummaryWriter``, a ``wandb.Run``, or a logger of Lightning or Fabric.

    Raises:
        TypeError: If it is something else.
    """
    if callable(getattr(given, "log_metrics", None)):
        return given
    is_run = all(callable(getattr(type(given), name, None)) for name in ("log", "define_metric", "save"))
    if is_summary_writer(given) or is_run:
        return Experiment(given)
    raise ArgumentTypeError(
        "Expected `logger` to be a SummaryWriter, a wandb.Run, a logger of Lightning or Fabric, or a list of "
        f"these, but got {type(given).__name__}."
    )
