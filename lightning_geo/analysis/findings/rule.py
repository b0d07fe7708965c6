"""Rules: what is looked for in a run's metrics, declared as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_geo.storage.finding import SEVERITIES, Severity
from lightning_geo.utils.errors import ArgumentError

__all__ = ["Departure", "Level", "NotFinite", "Rule", "Test"]

_Cells = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """Hold where a value lies beyond a limit; with both limits, between them.

    Args:
        at_least: Lowest value that holds.
        at_most: Highest value that holds.
        start_at_least: Lowest first value in the run with which it may hold later, so that what a model has
            been from the start is no finding.
        start_at_most: Highest first value in the run with which it may hold later.
        start_of: Stored name of the metric whose first value ``start_at_least`` and ``start_at_most`` limit,
            where a run has it; the same metric by default.
        unlike_others: Hold only while another layer of the stack is not beyond the limit.

    Raises:
        ValueError: Without a limit.

    Example:
        >>> now, start = np.array([0.01, 0.01, 0.5]), np.array([0.9, 0.1, 0.9])
        >>> Level(at_most=0.05, start_at_least=0.15).holds(now, start)
        array([ True, False, False])
    """

    at_least: float | None = None
    at_most: float | None = None
    start_at_least: float | None = None
    start_at_most: float | None = None
    start_of: str | None = None
    unlike_others: bool = False

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ArgumentError("Expected a level to have `at_least` or `at_most`, but got neither. Set one.")

    def holds(self, values: _Cells, start: _Cells) -> NDArray[np.bool_]:
        """Return where the values lie beyond the limit.

        Args:
            values: [layer] or [layer, head].
            start: The same shape, the first value in the run; NaN where there was none yet.
        """
        beyond = _within(values, self.at_least, self.at_most)
        result = beyond
        if self.start_at_least is not None or self.start_at_most is not None:
            result = beyond & _within(start, self.start_at_least, self.start_at_most)
        if self.unlike_others and not (np.isfinite(values) & ~beyond).any():
            return np.zeros_like(beyond)
        return result


@dataclass(frozen=True)
class Departure:
    """Hold where a value leaves its own trend over the last samples.

    A cell departs where the error of its trend's prediction exceeds ``spreads`` times the root mean square of
    the trend's earlier errors, and its value lies outside all values of the window by ``share`` of itself.
    Errors that were large before, as those at the start of a fine-tuning, thus count less. So do those of a
    run's first samples, by the cube of their share of ``settled``: models change abruptly while they begin
    to learn.

    Args:
        spreads: How many times the usual error.
        share: Least departure as a share of the value: a smaller one does not matter.
        window: Samples of the trend.
        guard: Samples before the present one that do not count for the trend, so that slow changes show.
        settled: Samples after which departures count in full.
        direction: Which departures count.
        log: Whether the trend is that of the value's logarithm.
        slope: Whether the trend is a line; else it is the mean, which does not follow a growth.
        per_interval: Whether the value grows with the steps between two samples, as that of an update: a
            sample after another interval than the one before is then passed over.
    """

    spreads: float = 4.0
    share: float = 0.05
    window: int = 16
    guard: int = 0
    settled: int = 128
    direction: Literal["up", "down", "both"] = "both"
    log: bool = False
    slope: bool = True
    per_interval: bool = False

    def __post_init__(self) -> None:
        for name, least in (("spreads", 0), ("share", 0), ("guard", 0), ("settled", 0), ("window", 8)):
            value, above = getattr(self, name), name == "spreads"
            size = float(value) if isinstance(value, Real) else math.nan
            if not (size > least if above else size >= least):
                raise ArgumentError(
                    f"Expected `{name}` of a departure to be a number {'above' if above else 'of at least'} "
                    f"{least} but got {value!r}."
                )


@dataclass(frozen=True)
class NotFinite:
    """Hold where a layer's activations were NaN or infinite, as the record's coverage lists them."""


Test = Level | Departure | NotFinite


@dataclass(frozen=True)
class Rule:
    """One thing to look for, in the metrics of each sample.

    Args:
        name: Name by which it is changed or silenced.
        metrics: Stored names of the metrics that it looks at, any of which suffices; for
            :class:`NotFinite` those that are measured along with it.
        test: What a layer or head must show.
        message: One sentence for a newcomer. ``{where}`` names layers and heads, ``{value}`` their median,
            ``{usual}`` the usual range, ``{metric}`` the metric; ``[attend|attends]`` is the first word for
            several, the second for one.
        severity: Of its findings.
        critical_layers: Share of a stack's layers from which a finding is critical; ``None`` for never.
        samples: For how many samples in a row it must hold; a finding ends after as many without it.
        heads: Least share of a layer's heads that must show it; 0 for one head.
        causes: Usual causes, most frequent first.
        next: What to try.
        source: Paper or convention that it comes from.

    Raises:
        ValueError: If a value does not fit.

    Example:
        >>> rule = Rule("sharp", ("entropy",), Level(at_most=0.1), "{where}: entropy is {value}.")
        >>> rule.severity, rule.samples
        ('warning', 2)
    """

    name: str
    metrics: tuple[str, ...]
    test: Test
    message: str
    severity: Severity = "warning"
    critical_layers: float | None = None
    samples: int = 2
    heads: float = 0.0
    causes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ArgumentError(
                f"Expected `severity` of rule {self.name!r} to be one of {SEVERITIES} but got "
                f"{self.severity!r}."
            )
        if not isinstance(self.samples, int) or self.samples < 1:
            raise ArgumentError(
                f"Expected `samples` of rule {self.name!r} to be an integer of at least 1 but got "
                f"{self.samples!r}."
            )
        for name in ("heads", "critical_layers"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ArgumentError(
                    f"Expected `{name}` of rule {self.name!r} to be a share from 0 to 1 but got {share!r}."
                )
        try:
            self.message.format(where="", value="", usual="", metric="")
        except (AttributeError, KeyError, IndexError, ValueError) as error:
            raise ArgumentError(
                f"Expected `message` of rule {self.name!r} to use only {{where}}, {{value}}, {{usual}} and "
                f"{{metric}} but got {self.message!r}."
            ) from error


def _within(values: _Cells, low: float | None, high: float | None) -> NDArray[np.bool_]:
    result = ~np.isnan(values)
    if low is not None:
        result &= values >= low
    if high is not None:
        result &= values <= high
    return result
