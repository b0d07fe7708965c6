"""The route ``runs``: a row for each run, with its verdict, its outcome and its metrics."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tensorboard.data.provider import RunTagFilter

from lightning_geo.dashboard.hyperparameters import read_hyperparameters, session_of
from lightning_geo.dashboard.metadata import PLUGIN, TagAddress, describe, parse_tag, tag_of
from lightning_geo.dashboard.order import natural
from lightning_geo.dashboard.run_ends import RunEnds, Series, stamp_of
from lightning_geo.dashboard.run_outcomes import RunOutcomes
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.storage.events import metadata_tag, session_tag
from lightning_geo.utils.errors import ArgumentError

__all__ = ["RunRows"]

_ALL = 10**9  # samples; the provider wants a number
_PATIENCE = (0.25, 1.0)  # seconds of a first and a later request for what takes a whole series to read
_MOST = 64  # metrics in a table
_BUILT_IN = {name for spec in CATALOG.values() for name in spec.stored_names}
_UNREADABLE = {"level": "unknown", "verdict": "The record of this run could not be read.", "findings": []}


class _Choice(NamedTuple):
    """What a row is about: a run's monitor, and the metrics that it has of those asked for."""

    run: str
    monitor: str
    metrics: Mapping[str, str]  # tag by name
    monitors: Sequence[str]  # of the run


class RunRows:
    """Reads rows of runs and keeps what it has read, so that only runs that went on are read again.

    What takes a whole series to read, a first sample or a verdict, is read for a quarter of a second, or
    for one where the page has rows already; what is missing then is ``pending``, and the page asks again.

    Args:
        provider: TensorBoard's data provider.
        findings: Called with context, experiment, run and monitor; returns what the route ``findings`` sends.
        specs: Called alike; returns the specs of metrics that are not built in.
    """

    def __init__(self, provider: Any, findings: Callable[..., str], specs: Callable[..., Any]) -> None:
        self._provider = provider
        self._findings = findings
        self._specs = specs
        self._ends = RunEnds(provider)
        self._outcomes = RunOutcomes(provider)
        self._verdicts: dict[tuple[str, str, str], tuple[Any, dict[str, Any]]] = {}
        self._summaries: dict[tuple[str, str, str, str], tuple[Any, str]] = {}

    def read(self, ctx: Any, experiment: str, asked: Any) -> str:
        """Return the rows as JSON.

        Args:
            ctx: Of the request.
            experiment: Of the request.
            asked: Arguments of the request: ``monitor`` and ``stack`` to prefer, ``metric`` for each column,
                ``loss`` and ``score`` as in ``read_curves``, and ``stamp`` that came with what the page has.

        Returns:
            ``rows``, ``pending`` (how many are not complete) and ``stamp``; ``unchanged`` alone if the page's
            stamp still holds. A row has ``run``, ``values`` (name, first step and value, last step and value
            of each metric), ``damaged`` (names of metrics), ``pending``, ``verdict`` (``level``, ``verdict``,
            ``findings``: the worst alone), ``loss`` and ``score`` (tag, step, value) and ``hyperparameters``
            (name, value). What is absent, pending or not finite is null.

        Raises:
            ValueError: If more metrics are asked for than a table can hold.
        """
        names = asked.getlist("metric")
        if len(names) > _MOST:
            raise ArgumentError(f"Expected at most {_MOST} of `metric` but got {len(names)}.")
        deadline = time.monotonic() + _PATIENCE["stamp" in asked]
        listing = self._provider.list_tensors(ctx, experiment_id=experiment, plugin_name=PLUGIN)
        choices = _choose(listing, names, asked.get("monitor", ""), asked.get("stack", ""))
        sessions = self._sessions(ctx, experiment, listing, choices)
        verdicts = [self._verdict(ctx, experiment, listing[c.run], c, deadline) for c in choices]
        series = [
            Series(c.run, tag, stamp_of(tags[tag]), self._summary(ctx, experiment, tags, c, name))
            for c in choices
            for tags in [listing[c.run]]
            for name, tag in c.metrics.items()
        ]
        ends = iter(self._ends.read(ctx, experiment, series, sessions, deadline))
        monitors = {c.run: c.monitors for c in choices}
        outcomes = self._outcomes.read(ctx, experiment, monitors, asked, sessions)
        known = read_hyperparameters(self._provider, ctx, experiment)
        rows = []
        for c, verdict in zip(choices, verdicts, strict=True):
            values, damaged, pending = [], [], verdict is None
            for name in c.metrics:
                first, last = next(ends)
                pending |= first is None or last is None
                values.append((name, *(first or (None, None))[:2], *(last or (None, None))[:2]))
                damaged += [name] if any(end is not None and end.damaged for end in (first, last)) else []
            of = session_of(c.run, known)
            parameters = [] if of is None else known[of]
            rows.append({"run": c.run, "values": values, "damaged": damaged, "pending": pending,
                         "verdict": verdict, "hyperparameters": parameters, **outcomes[c.run]})  # fmt: skip
        body = {"rows": rows, "pending": sum(row["pending"] for row in rows)}
        stamp = hashlib.sha256(json.dumps(body, allow_nan=False).encode()).hexdigest()
        return json.dumps({"unchanged": True} if stamp == asked.get("stamp") else {**body, "stamp": stamp})

    def _sessions(
        self, ctx: Any, experiment: str, listing: Mapping[str, Any], choices: Sequence[_Choice]
    ) -> dict[str, list[Any]]:
        """Starts of resumed sessions by run, which most do not have."""
        marks = {c.run: mark for c in choices if (mark := session_tag(c.monitor)) in listing[c.run]}
        if not marks:
            return {}
        data = self._provider.read_tensors(
            ctx, experiment_id=experiment, plugin_name=PLUGIN, downsample=_ALL,
            run_tag_filter=RunTagFilter(sorted(marks), sorted(set(marks.values()))),
        )  # fmt: skip
        return {run: list(data.get(run, {}).get(mark, [])) for run, mark in marks.items()}

    def _verdict(
        self, ctx: Any, experiment: str, tags: Mapping[str, Any], c: _Choice, deadline: float
    ) -> dict[str, Any] | None:
        """What a run's monitor found, in short; None where there was no time to look."""
        own = [tag for tag in (metadata_tag(c.monitor), session_tag(c.monitor)) if tag in tags]
        version = [stamp_of(tags[tag]) for tag in own]
        read, verdict = self._verdicts.get((experiment, c.run, c.monitor), (None, None))
        if read == version or (verdict is not None and time.monotonic() >= deadline):
            return verdict
        if time.monotonic() >= deadline:
            return None
        try:
            verdict = _short(json.loads(self._findings(ctx, experiment, c.run, c.monitor)))
        except LookupError:
            verdict = _UNREADABLE
        self._verdicts[experiment, c.run, c.monitor] = version, verdict
        return verdict

    def _summary(self, ctx: Any, experiment: str, tags: Mapping[str, Any], c: _Choice, name: str) -> str:
        """How a metric's sample becomes one number, as its run says where it is not built in."""
        if name in _BUILT_IN:
            return str(describe(name)["summary"])
        tag = metadata_tag(c.monitor)
        version = stamp_of(tags[tag]) if tag in tags else None
        key = (experiment, c.run, c.monitor, name)
        if key not in self._summaries or self._summaries[key][0] != version:
            specs = self._specs(ctx, experiment, c.run, c.monitor)
            self._summaries[key] = version, str(describe(name, specs)["summary"])
        return self._summaries[key][1]


def _choose(listing: Mapping[str, Any], names: Sequence[str], monitor: str, stack: str) -> list[_Choice]:
    """The monitor and stack of each run, by the rules of the page: see ``stackOf`` in state.js."""
    choices = []
    for run in sorted(listing, key=natural):
        stacks: dict[str, dict[str, set[str]]] = {}
        for tag in sorted(listing[run], key=natural):
            address = parse_tag(tag)
            if address is not None:
                stacks.setdefault(address.monitor, {}).setdefault(address.stack, set()).add(address.metric)
        if not stacks:
            continue
        own = monitor if monitor in stacks else next(iter(stacks))
        only = next(iter(stacks[own])) if len(stacks[own]) == 1 else None
        at = stack if stack in stacks[own] else only
        have = stacks[own][at] if at is not None else set()
        tags = {name: tag_of(TagAddress(own, str(at), name)) for name in dict.fromkeys(names) if name in have}
        choices.append(_Choice(run, own, tags, list(stacks)))
    return choices


def _short(summary: dict[str, Any]) -> dict[str, Any]:
    """The verdict with the worst finding that is open, or else the first."""
    findings = [f for f in summary["findings"] if f["until_step"] is None][:1] or summary["findings"][:1]
    kept = ("rule", "severity", "layers", "since_step", "until_step")
    return {
        "level": summary["level"],
        "verdict": summary["verdict"],
        "findings": [{name: f[name] for name in kept} for f in findings],
    }
