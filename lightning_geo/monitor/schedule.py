"""The optimizer steps that are sampled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import lightning_geo.functional  # noqa: F401 - it registers what metrics read
from lightning_geo.metrics.registry import reads_of
from lightning_geo.utils.arguments import check_positive
from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError
from lightning_geo.utils.ranks import rank
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["OverheadBudget", "Pace", "Schedule", "SlowClocks"]

_DEFAULT_INTERVAL = 50

#: Steps after which the pace is looked at again at the latest, early in a run.
_FIRST_LOOK = 8


class Schedule:
    """Every ``every_n_steps`` steps from step 0 on, or wherever ``schedule`` says; step 0 always.

    Args:
        every_n_steps: Interval in optimizer steps; default 50.
        schedule: ``step -> bool`` instead.

    Raises:
        ValueError: If both are given, or the interval is no positive integer.
        TypeError: If ``schedule`` cannot be called.

    Example:
        >>> [step for step in range(5) if Schedule(every_n_steps=2)(step)]
        [0, 2, 4]
    """

    def __init__(
        self, every_n_steps: int | None = None, schedule: Callable[[int], bool] | None = None
    ) -> None:
        if every_n_steps is not None and schedule is not None:
            raise ArgumentError(
                "Expected either `every_n_steps` or `schedule` but got both. Leave one of them out: "
                "`schedule` alone decides which steps are sampled."
            )
        interval = _DEFAULT_INTERVAL if every_n_steps is None else every_n_steps
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ArgumentError(
                f"Expected `every_n_steps` to be an integer of at least 1 but got {every_n_steps!r}. "
                "To switch the monitor off, leave it out of the callbacks."
            )
        if schedule is not None and not callable(schedule):
            raise ArgumentTypeError(
                f"Expected `schedule` to be a callable `step -> bool` but got {type(schedule).__name__}."
            )
        #: optimizer steps between samples, unless a function decides
        self.interval = interval
        self._schedule = schedule

    @property
    def given(self) -> bool:
        """Whether a function decides, which may do so differently on each rank."""
        return self._schedule is not None

    def __call__(self, step: int) -> bool:
        """Whether the sample at this step is due."""
        if step == 0 or self._schedule is None:
            return step % self.interval == 0
        return bool(self._schedule(step))

    def agreed(self, step: int, agree: Callable[[int], int]) -> tuple[bool, Exception | None]:
        """Return whether a step is sampled, the same on every rank, and why the user's function failed.

        It is asked on rank 0 alone: a sample that some ranks take and others do not leaves the first waiting.

        Args:
            step: Optimizer step.
            agree: Gives every rank rank 0's number.
        """
        if not self.given:
            return self(step), None
        due, failure = False, None
        if rank() == 0:
            try:
                due = self(step)
            except Exception as error:
                failure = error
        return bool(agree(int(due))), failure


class SlowClocks:
    """The metrics that a sample measures: some cost much, or change slowly.

    The run's first and last sample measure them all.

    Args:
        weights_every_n_samples: From one sample with what needs the parameters alone to the next.
        importance_every_n_samples: The same for ``importance``.

    Raises:
        ValueError: If one is no positive integer.

    Example:
        >>> clocks = SlowClocks(weights_every_n_samples=2, importance_every_n_samples=3)
        >>> [clocks.due(("entropy", "symmetry", "importance"), samples) for samples in (1, 2)]
        [('entropy',), ('entropy', 'symmetry')]
    """

    def __init__(self, *, weights_every_n_samples: int, importance_every_n_samples: int) -> None:
        check_positive("weights_every_n_samples", weights_every_n_samples)
        check_positive("importance_every_n_samples", importance_every_n_samples)
        #: quantity that a metric reads -> samples from one measurement of it to the next
        self._intervals = {"weights": weights_every_n_samples, "head_gradient": importance_every_n_samples}

    def due(self, metrics: Iterable[str], samples: int, *, final: bool = False) -> tuple[str, ...]:
        """Return the metrics to measure after that many samples of the run."""
        return tuple(m for m in metrics if final or samples % self._interval(m) == 0)

    def _interval(self, metric: str) -> int:
        return max(self._intervals.get(quantity, 1) for quantity in reads_of(metric))


class OverheadBudget:
    """Samples as often as a share of the run's time allows; step 0 always.

    It knows what samples have cost and how fast steps are, and looks again no later than after as many
    steps as there were, so that a pace that changes is noticed. Which steps it took is in the record.

    Args:
        share: Largest part of the run's time that samples may take.
        clock: Seconds.

    Raises:
        ValueError: If ``share`` is not between 0 and 1.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share < 1:
            raise ArgumentError(
                "Expected `max_overhead` to be a share of the run's time between 0 and 1, 0.01 for one per "
                f"cent, but got {share!r}."
            )
        self._share = share
        self._clock = clock
        self._began = clock()
        self._next = 0
        #: seconds that earlier sessions of the run took
        self.before = 0.0

    def start(self, step: int) -> None:
        """A session begins, at this step."""
        self._began, self._next = self._clock(), step

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, samples included."""
        return self.before + self._clock() - self._began

    def looks(self, step: int) -> bool:
        """Whether what samples have cost decides at this step, the same on every rank."""
        return step >= self._next

    def __call__(
        self, step: int, spent: float, samples: int, agree: Callable[[int], int] = lambda wait: wait
    ) -> bool:
        """Whether to sample at this step.

        Args:
            step: Ascending from call to call.
            spent: Seconds that samples have cost, those that were dropped included.
            samples: How many there were, without those.
            agree: Makes all ranks decide alike.
        """
        if not self.looks(step):
            return False
        if spent == 0:  # where nothing can be sampled, it is not tried at every step
            self._next = step + _FIRST_LOOK
            return True
        wait = agree(self._wait(step, spent, spent / max(samples, 1)))
        self._next = step + max(wait, 1)
        return wait == 0

    def _wait(self, step: int, spent: float, sample: float) -> int:
        """Steps until another sample fits into the budget: 0 for now."""
        elapsed = self.elapsed
        missing = (spent + sample) / self._share - (elapsed + sample)
        if missing <= 0:
            return 0
        pace = max(elapsed - spent, 1e-9) / max(step, 1)
        return min(max(1, math.ceil(missing / pace)), max(step, _FIRST_LOOK))


class Pace:
    """Whether a step of a run is sampled: the schedule decides, or the budget where there is one.

    Args:
        schedule: The monitor's.
        share: See :class:`OverheadBudget`; ``None`` for no budget.
        warn_once: Where failures of the user's schedule go.
    """

    def __init__(self, schedule: Schedule, share: float | None, warn_once: WarnOnce) -> None:
        self._schedule = schedule
        self._budget = None if share is None else OverheadBudget(share)
        self._warn_once = warn_once

    def start(self, step: int, elapsed: float) -> None:
        """A session begins.

        Args:
            step: At which.
            elapsed: Seconds that earlier sessions of the run took.
        """
        if self._budget is not None:
            self._budget.before = elapsed
            self._budget.start(step)

    def elapsed(self, otherwise: float) -> float:
        """Return the seconds that the run has taken, where they are counted."""
        return otherwise if self._budget is None else self._budget.elapsed

    def looks(self, step: int) -> bool:
        """Whether what samples have cost decides at this step, so that it is to be known."""
        return self._budget is not None and self._budget.looks(step)

    def due(self, step: int, spent: float, samples: int, agree: Callable[[int], int]) -> bool:
        """Whether a step is sampled, the same on every rank.

        Args:
            step: Optimizer step.
            spent: Seconds that samples have cost.
            samples: How many there were.
            agree: Gives every rank rank 0's number.
        """
        if self._budget is not None:
            return self._budget(step, spent, samples, agree)
        due, failure = self._schedule.agreed(step, agree)
        if failure is not None:
            self._warn_once.report("`schedule` failed", failure, f"first at step {step}")
        return due
