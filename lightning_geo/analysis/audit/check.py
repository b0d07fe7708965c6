"""Checks a run against a policy. What was not measured never counts as passed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.audit.limit_values import Measured, measured
from lightning_geo.analysis.audit.policy import Limit, Policy, Waiver
from lightning_geo.metrics.selection import spec_of
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.history import GeometryHistory

__all__ = ["RESULTS", "Audit", "Check", "Counts", "Result", "WaiverUse", "Worst", "audit"]

Result = Literal["breached", "not measured", "waived", "passed"]

#: From the worst on: the result of a check is the first of these that one of its values has.
RESULTS: tuple[Result, ...] = ("breached", "not measured", "waived", "passed")

_Cells = NDArray[np.bool_]


class Counts(NamedTuple):
    """How many values a check asked for, by what became of them; one per layer or head, and sample."""

    passed: int
    breached: int
    waived: int
    not_measured: int


class Worst(NamedTuple):
    """The value that lies furthest beyond its limit, or nearest to it.

    Args:
        value: The value; of a limit on change, the difference.
        step: Its sample.
        layer: Its layer.
        head: Its head; ``None`` for a metric of layers.
        beyond: By how much it lies beyond the limit; negative for one that passes.
        before: Value in the earlier release; NaN without one.
        error: Standard error of an estimated value; NaN for one that is exact.
    """

    value: float
    step: int
    layer: int
    head: int | None
    beyond: float
    before: float
    error: float


@dataclass(frozen=True)
class Check:
    """One limit on one metric of one stack.

    Args:
        limit: The limit.
        stack: The stack.
        metric: Stored name of the metric.
        spec: What the metric is.
        result: The worst that one of its values has.
        counts: All of its values.
        steps: Samples that were looked at.
        worst: The value that matters most; ``None`` where there is none.
        reasons: Why values are missing, one sentence each.
        breached: [layer] or [layer, head], where the limit is passed and no waiver holds.
        waived: The same where a waiver holds.
        defined: The same where there is any value.
        since: First sample with a breach that no waiver excuses; ``None`` without one.
        values: [layer] or [layer, head], the values that were asked for, of the sample with the worst one.
    """

    limit: Limit
    stack: str
    metric: str
    spec: MetricSpec
    result: Result
    counts: Counts
    steps: tuple[int, ...]
    worst: Worst | None
    reasons: tuple[str, ...]
    breached: _Cells
    waived: _Cells
    defined: _Cells
    since: int | None
    values: NDArray[np.float64]


class WaiverUse(NamedTuple):
    """What a waiver did.

    Args:
        waiver: The waiver.
        state: ``"used"``; ``"not needed"``, where nothing is breached; ``"expired"``; or ``"matches
            nothing"``, where the run has no such stack, layer or head.
        values: How many values it excuses; of an expired one, how many it would.
    """

    waiver: Waiver
    state: Literal["used", "not needed", "expired", "matches nothing"]
    values: int


@dataclass(frozen=True)
class Audit:
    """All checks of a run against a policy.

    Args:
        policy: The policy.
        day: The day on which waivers were looked at.
        checks: In the order of the policy.
        waivers: In the order of the policy.
        unread: What could not be read of the runs, one sentence each.
    """

    policy: Policy
    day: dt.date
    checks: tuple[Check, ...]
    waivers: tuple[WaiverUse, ...]
    unread: tuple[str, ...] = ()

    @property
    def result(self) -> Result:
        """The worst of all checks; of those that are not measured, only what the policy requires counts.

        Where nothing at all was measured, or the record could not be read whole, it is ``"not measured"``
        whatever the policy requires: a sample that is lost may have been the last one.
        """
        results = {
            check.result for check in self.checks if check.result != "not measured" or check.limit.required
        }
        worst: Result = next((result for result in RESULTS if result in results), "not measured")
        return "not measured" if self.unread and worst != "breached" else worst

    @property
    def failed(self) -> bool:
        """Whether something is breached, or something that is required was not measured."""
        return self.result in ("breached", "not measured")

    def count(self, result: Result) -> int:
        """Return how many checks have a result."""
        return sum(check.result == result for check in self.checks)


def audit(
    history: GeometryHistory,
    policy: Policy,
    release: GeometryHistory | None = None,
    day: dt.date | None = None,
    unread: Sequence[str] = (),
) -> Audit:
    """Check a run against a policy.

    A value passes if it is no less than ``at_least`` and no more than ``at_most``, each rounded to the
    precision in which the value is stored. An infinite value passes no limit. NaN, and what the record lacks,
    is not measured.

    Args:
        history: The run.
        policy: The limits.
        release: An earlier run, whose last sample limits on change compare with; only samples on the same
            probe are comparable.
        day: Day for the expiry of waivers; ``None`` for today (UTC).
        unread: What could not be read of the runs.

    Example:
        >>> from lightning_geo import GeometryRecord
        >>> run = GeometryHistory([GeometryRecord({"encoder": {"entropy": np.array([[0.5, 0.01]])}})])
        >>> policy = Policy("No collapse", "R. Roe", (Limit("focus", ("entropy",), at_least=0.05),))
        >>> result = audit(run, policy)
        >>> result.result, result.checks[0].counts, result.checks[0].worst.head
        ('breached', Counts(passed=1, breached=1, waived=0, not_measured=0), 1)
    """
    day = day or dt.datetime.now(dt.timezone.utc).date()
    excused = [0] * len(policy.waivers)
    matched = [False] * len(policy.waivers)
    checks = []
    for limit in policy.limits:
        for name in limit.metrics:
            for stack in limit.places.stacks or history.stacks:
                spec = spec_of(name, history.specs)
                values = measured(history, limit, stack, name, release)
                checks.append(_check(limit, stack, name, spec, values, policy.waivers, day, excused, matched))
    waivers = tuple(
        WaiverUse(waiver, _state(waiver, day, matched[i], excused[i]), excused[i])
        for i, waiver in enumerate(policy.waivers)
    )
    return Audit(policy, day, tuple(checks), waivers, tuple(unread))


def _check(
    limit: Limit, stack: str, name: str, spec: MetricSpec, data: Measured, waivers: Sequence[Waiver],
    day: dt.date, excused: list[int], matched: list[bool],
) -> Check:  # fmt: skip
    asked = limit.places.cells(data.existing)
    beyond = np.where(asked, data.beyond(limit), np.nan)
    known = ~np.isnan(beyond)
    breach = known & (beyond > 0)
    waived = np.zeros_like(asked)
    for i, waiver in _covering(waivers, limit, name, stack):
        cells = asked & waiver.places.cells(data.existing)
        matched[i] |= bool(cells.any())
        excused[i] += int((breach & cells).sum())
        if day <= waiver.expires:
            waived |= cells
    open_breach = breach & ~waived
    total = max(int(asked.sum()) * len(beyond) + data.missing, 1)  # a stack that is absent is one
    counts = Counts(
        int((known & ~breach).sum()), int(open_breach.sum()), int((breach & waived).sum()),
        total - int(known.sum()),
    )  # fmt: skip
    by_result: dict[Result, int] = {
        "breached": counts.breached,
        "not measured": counts.not_measured,
        "waived": counts.waived,
    }
    result: Result = next((result for result, count in by_result.items() if count), "passed")
    sample, worst = _worst(data, np.where(open_breach, beyond, np.nan) if open_breach.any() else beyond)
    at = np.flatnonzero(open_breach.any(axis=tuple(range(1, open_breach.ndim))))
    return Check(
        limit, stack, name, spec, result, counts, tuple(int(step) for step in data.steps), worst,
        data.reasons(asked), np.logical_or.reduce(open_breach), np.logical_or.reduce(breach & waived),
        np.logical_or.reduce(known),
        int(data.steps[at[0]]) if len(at) else None,
        np.full(asked.shape, np.nan) if worst is None else np.where(asked, data.values[sample], np.nan),
    )  # fmt: skip


def _covering(waivers: Sequence[Waiver], limit: Limit, name: str, stack: str) -> Iterator[tuple[int, Waiver]]:
    return ((i, waiver) for i, waiver in enumerate(waivers) if waiver.covers(limit.name, name, stack))


def _worst(data: Measured, beyond: NDArray[np.float64]) -> tuple[int, Worst | None]:
    if np.isnan(beyond).all():
        return 0, None
    place = np.unravel_index(int(np.nanargmax(beyond)), beyond.shape)
    sample, layer, *head = (int(index) for index in place)
    return sample, Worst(
        float(data.values[place]), int(data.steps[sample]), layer, head[0] if head else None,
        float(beyond[place]), float(data.before[place[1:]]), float(data.errors[place]),
    )  # fmt: skip


def _state(
    waiver: Waiver, day: dt.date, matched: bool, excused: int
) -> Literal["used", "not needed", "expired", "matches nothing"]:
    if day > waiver.expires:
        return "expired"
    if not matched:
        return "matches nothing"
    return "used" if excused else "not needed"
