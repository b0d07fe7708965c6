"""Which optimizer steps are sampled."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Schedule"]

DEFAULT_INTERVAL = 50


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
            raise ValueError(
                "Expected either `every_n_steps` or `schedule` but got both. Leave one of them out: "
                "`schedule` alone decides which steps are sampled."
            )
        interval = DEFAULT_INTERVAL if every_n_steps is None else every_n_steps
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(
                f"Expected `every_n_steps` to be an integer of at least 1 but got {every_n_steps!r}. "
                "To switch the monitor off, leave it out of the callbacks."
            )
        if schedule is not None and not callable(schedule):
            raise TypeError(
                f"Expected `schedule` to be a callable `step -> bool` but got {type(schedule).__name__}."
            )
        self._interval = interval
        self._schedule = schedule

    def __call__(self, step: int) -> bool:
        """Whether the sample at this step is due."""
        if step == 0 or self._schedule is None:
            return step % self._interval == 0
        return bool(self._schedule(step))
