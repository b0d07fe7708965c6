"""Descriptions of what a user does: a monitor, a run that begins, a fit."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_geo import GeometryMonitor
from run_machine.short import Short

__all__ = ["Begin", "Fit", "Watch"]


@dataclass(frozen=True, repr=False)
class Watch(Short):
    """Description of a monitor."""

    every: int = 1
    source: str = "probe"
    metrics: tuple[str, ...] | None = ("entropy",)
    max_queries: int | None = None
    probe_size: int = 16
    probe_in_checkpoint: bool = True
    name: str = "geometry"

    def make(self) -> GeometryMonitor:
        """The monitor."""
        return GeometryMonitor(
            self.every, source=self.source, metrics=None if self.metrics is None else list(self.metrics),
            max_queries=self.max_queries, probe_size=self.probe_size, name=self.name,
            probe_in_checkpoint=self.probe_in_checkpoint, importance_every_n_samples=2,
        )  # type: ignore[arg-type]  # fmt: skip


@dataclass(frozen=True, repr=False)
class Begin(Short):
    """A new run.

    Args:
        seed: Of weights and data.
        loggers: Names in :data:`LOGGERS`.
        accumulate: Batches of an update.
        watches: Its monitors, unless it uses another run's.
        monitors_of: The run whose monitors it uses.
        copied: How these are copied first.
        monitors_first: Whether they come before the user's callback.
        validate_every: Batches between validations; None for the end of an epoch.
    """

    seed: int = 0
    loggers: tuple[str, ...] = ()
    accumulate: int = 1
    watches: tuple[Watch, ...] = (Watch(),)
    monitors_of: int | None = None
    copied: str | None = None
    monitors_first: bool = True
    validate_every: int | None = None
    sanity: int = 1


@dataclass(frozen=True, repr=False)
class Fit(Short):
    """One fit, or more of one.

    Args:
        steps: How many optimizer steps more, or epochs.
        epochs: Whether these are epochs.
        fails: Where the user's code fails, at the ``count``-th time.
        count: See there.
        interrupts: Whether it is Ctrl-C instead of an error.
        fault: What fails inside of the monitor from the ``fault_at``-th time on.
        fault_at: See there.
        acts: What a callback of the user's does once: copies, saves a checkpoint, or fits another run.
        acts_in: In which hook of that callback.
        acts_at: At which call of that hook.
        other: The run that is fitted within.
        finished: When the records of samples are made, see :func:`support.outside.finished`.
    """

    steps: int = 2
    epochs: bool = False
    fails: str = ""
    count: int = 0
    interrupts: bool = False
    fault: str | None = None
    fault_at: int = 0
    acts: str = ""
    acts_in: str = "on_before_backward"
    acts_at: int = 0
    other: int | None = None
    finished: str = "at once"
