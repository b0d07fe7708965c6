"""How runs ended: the last loss and validation score of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS

from lightning_geo.dashboard.curves_route import picked_tags
from lightning_geo.dashboard.run_ends import stamp_of
from lightning_geo.dashboard.samples import in_force
from lightning_geo.storage.run_curves import curve_tags

__all__ = ["RunOutcomes"]

#: Curves whose end counts.
_OUTCOMES = ("loss", "score")

_ALL = 10**9  # samples; the provider wants a number


class RunOutcomes:
    """Reads the end of curves and keeps it until they go on.

    Args:
        provider: TensorBoard's data provider.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._known: dict[tuple[str, str, str], tuple[Any, tuple[int, float | None] | None]] = {}

    def read(
        self,
        ctx: Any,
        experiment: str,
        monitors: Mapping[str, Sequence[str]],
        asked: Any,
        sessions: Mapping[str, Sequence[Any]],
    ) -> dict[str, dict[str, Any]]:
        """Return tag, step and value of the loss and the score of each run, None for a run without.

        A value that is not finite is None too.

        Args:
            ctx: Of the request.
            experiment: Of the request.
            monitors: Names of each run's monitors, whose scalars are no curves of the run.
            asked: ``loss`` and ``score`` of the request, as in ``read_curves``.
            sessions: Starts of resumed sessions, by run.
        """
        if not monitors:
            return {}
        listing = self._provider.list_scalars(
            ctx, experiment_id=experiment, plugin_name=SCALARS,
            run_tag_filter=RunTagFilter(runs=sorted(monitors)),
        )  # fmt: skip
        tags = {}
        for run, names in monitors.items():
            picked = picked_tags(curve_tags(listing.get(run, {}), names), asked)
            tags[run] = {role: picked[role] for role in _OUTCOMES}
        news = {}
        for run, by_role in tags.items():
            for tag in {tag for tag in by_role.values() if tag is not None}:
                version = stamp_of(listing[run][tag]), [(s.step, s.wall_time) for s in sessions.get(run, ())]
                if self._known.get((experiment, run, tag), (None, None))[0] != version:
                    news[run, tag] = version
        runs, new = {run for run, _ in news}, {tag for _, tag in news}
        data = self._scalars(ctx, experiment, runs, new, 1)
        for (run, tag), version in news.items():
            standing = in_force(data.get(run, {}).get(tag, [])[-1:], sessions.get(run, ()))
            if not standing:  # a resumed session replaced the last one
                whole = self._scalars(ctx, experiment, {run}, {tag}, _ALL).get(run, {}).get(tag, [])
                standing = in_force(whole, sessions.get(run, ()))
            self._known[experiment, run, tag] = version, _step_and_value(standing[-1]) if standing else None
        return {
            run: {role: self._end(experiment, run, tag) for role, tag in by_role.items()}
            for run, by_role in tags.items()
        }

    def _end(self, experiment: str, run: str, tag: str | None) -> tuple[str, int, float | None] | None:
        if tag is None:
            return None
        end = self._known[experiment, run, tag][1]
        return None if end is None else (tag, *end)

    def _scalars(
        self, ctx: Any, experiment: str, runs: set[str], tags: set[str], limit: int
    ) -> dict[str, Any]:
        if not runs:
            return {}
        scalars: dict[str, Any] = self._provider.read_scalars(
            ctx, experiment_id=experiment, plugin_name=SCALARS, downsample=limit,
            run_tag_filter=RunTagFilter(sorted(runs), sorted(tags)),
        )  # fmt: skip
        return scalars


def _step_and_value(datum: Any) -> tuple[int, float | None]:
    value = float(datum.value)
    return int(datum.step), value if math.isfinite(value) else None
