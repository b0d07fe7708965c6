"""The arguments of a monitor, checked."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning_geo._version import __version__
from lightning_geo.loggers.tags import Level
from lightning_geo.measurement.row_sampling import MaxQueries
from lightning_geo.measurement.sample import LayerChoice
from lightning_geo.metrics.foreign import FOREIGN, ForeignMetric
from lightning_geo.metrics.selection import is_of_probe, needs_probe, select, spec_of
from lightning_geo.monitor.alerts import Alerts, AlertsArgument, alerts_of
from lightning_geo.monitor.schedule import OverheadBudget, Schedule, SlowClocks
from lightning_geo.utils.arguments import check_name, check_one_of, check_positive, check_token_ids
from lightning_geo.utils.errors import ArgumentError

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The arguments of a monitor, checked; :class:`.MonitorArguments` documents them."""

    schedule: Schedule
    clocks: SlowClocks
    max_overhead: float | None
    metrics: tuple[str, ...]
    #: those of ``metrics`` that are not built in; where a spawned rank unpickles them they are registered
    foreign: tuple[ForeignMetric, ...]
    layers: LayerChoice
    rank: int
    source: str
    probe: Any
    probe_size: int
    probe_tokens: int | None
    probe_in_checkpoint: bool
    patterns: bool
    module: str | None
    baseline: str | os.PathLike[str] | None
    special_token_ids: list[int] | None
    max_queries: MaxQueries
    loss_fn: Callable[..., Any] | None
    scalars: Level
    alerts: Alerts | None
    strict: bool
    name: str

    @property
    def how_often(self) -> str:
        """When samples are taken, in words."""
        if self.max_overhead is not None:
            return f"as often as {100 * self.max_overhead:g} % of the run's time allows"
        if self.schedule.given:
            return "at the steps that `schedule` chooses"
        return "every step" if self.schedule.interval == 1 else f"every {self.schedule.interval} steps"

    def as_config(self) -> dict[str, Any]:
        """Return what a run's config says of the monitor, as JSON-serialisable values."""
        probe = self.source == "probe"
        by_interval = self.max_overhead is None and not self.schedule.given
        return {
            "every_n_steps": self.schedule.interval if by_interval else None,
            "max_overhead": self.max_overhead,
            "source": self.source,
            "probe": ("recorded" if self.probe is None else "given") if probe else None,
            "probe_size": self.probe_size,
            "probe_tokens": self.probe_tokens,
            "max_queries": self.max_queries,
            "rank": self.rank,
            "metrics": [
                name for name in self.metrics if probe or not (needs_probe(name) or is_of_probe(name))
            ],
            "scalars": self.scalars,
            "versions": _versions(),
        }

    @classmethod
    def of(
        cls,
        *,
        every_n_steps: int | None,
        schedule: Callable[[int], bool] | None,
        max_overhead: float | None,
        metrics: str | list[str] | None,
        weights_every_n_samples: int,
        importance_every_n_samples: int,
        alerts: AlertsArgument,
        **others: Any,
    ) -> Settings:
        """Check arguments, and resolve names of metrics.

        Raises:
            TypeError: If an argument is of a wrong type.
            ValueError: If an argument's value does not fit, or makes another useless.
        """
        check_one_of("source", others["source"], ("probe", "batch"))
        check_one_of("scalars", others["scalars"], ("model", "layer", "head"))
        for name in ("rank", "probe_size"):
            check_positive(name, others[name])
        if others["probe_tokens"] is not None:
            check_positive("probe_tokens", others["probe_tokens"])
        limit = others["max_queries"]
        if isinstance(limit, str) and limit != "auto":
            raise ArgumentError(
                'Expected `max_queries` to be an integer of at least 1, "auto" or None (all rows) but got '
                f"{limit!r}."
            )
        if limit is not None and limit != "auto":
            check_positive("max_queries", limit)
        check_token_ids(others["special_token_ids"])
        check_name(others["name"])
        clocks = SlowClocks(
            weights_every_n_samples=weights_every_n_samples,
            importance_every_n_samples=importance_every_n_samples,
        )
        steps = Schedule(every_n_steps, schedule)
        if max_overhead is not None and (every_n_steps is not None or schedule is not None):
            raise ArgumentError(
                "Expected `max_overhead` alone, or `every_n_steps` or `schedule` without it, but got both: "
                "the budget decides which steps are sampled."
            )
        if max_overhead is not None:
            OverheadBudget(max_overhead)  # raises where it is no share
        names = select(metrics)
        _check_source(others["source"], names, others["probe"], others["baseline"], others["loss_fn"])
        bases = dict.fromkeys(name.partition(".")[0] for name in names)
        foreign = tuple(FOREIGN[base] for base in bases if base in FOREIGN)
        return cls(
            schedule=steps,
            clocks=clocks,
            max_overhead=max_overhead,
            metrics=names,
            foreign=foreign,
            alerts=alerts_of(alerts),
            **others,
        )


def _versions() -> dict[str, str]:
    """Versions that the numbers depend on."""
    versions = {package: _version(package) for package in ("torch", "transformers")}
    return {"lightning_geo": __version__, **{name: text for name, text in versions.items() if text}}


@functools.cache  # to look for it takes milliseconds, and what is imported does not change
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # it runs from its sources
        return None


def _check_source(
    source: str, metrics: Sequence[str], probe: object, baseline: object, loss_fn: object
) -> None:
    """Raise ``ValueError`` where one argument makes another useless.

    Args:
        source: ``"probe"`` or ``"batch"``.
        metrics: Stored names.
        probe: As given to the monitor.
        baseline: As given to the monitor.
        loss_fn: As given to the monitor.
    """
    drifts = any(spec_of(name).name == "drift" for name in metrics)
    if source == "batch":
        for name, given in (("probe", probe), ("baseline", baseline), ("loss_fn", loss_fn)):
            if given is not None:
                raise ArgumentError(
                    f'Expected `{name}` only with `source="probe"` but got both `{name}` and '
                    '`source="batch"`, which looks at the training batches alone. Leave one of them out.'
                )
        if all(needs_probe(name) or is_of_probe(name) for name in metrics):
            raise ArgumentError(
                "Expected `metrics` to name more than `drift` and `velocity` with "
                f'`source="batch"` but got {tuple(metrics)}: they need a probe. Use `source="probe"`.'
            )
    elif baseline is not None and not drifts:
        raise ArgumentError(
            "Expected `metrics` to include `drift` where `baseline` is given, since nothing else is measured "
            f"against it, but got {tuple(metrics)}."
        )
