"""The route ``curves``: reads what else a run logged through TensorBoard's data provider."""

from __future__ import annotations

import json
from typing import Any

from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS

from lightning_geo.dashboard.metadata import PLUGIN
from lightning_geo.dashboard.samples import in_force
from lightning_geo.storage.events import session_tag
from lightning_geo.storage.run_curves import (
    ROLES,
    curve_tags,
    epochs_of,
    evaluation_tag,
    suggested,
    thinned,
)

__all__ = ["picked_tags", "read_curves"]

_ALL = 10**9  # samples; the provider wants a number
_NONE = "-"
_CHOSEN = "="  # before a tag that was chosen: it may have any name, that of "none" too


def read_curves(provider: Any, ctx: Any, experiment: str, run: str, asked: Any) -> str:
    """Return a run's loss, validation score and learning rate as JSON.

    Args:
        provider: TensorBoard's data provider.
        ctx: Of the request.
        experiment: Of the request.
        run: As TensorBoard names it.
        asked: Arguments of the request: ``monitor`` for each monitor of the run, whose scalars are left out;
            ``loss``, ``score`` and ``rate``: ``-`` for none, ``=TAG`` for a tag, found by its name otherwise;
            ``stamp`` that came with what the page has.

    Returns:
        ``tags`` to choose from, ``curves`` by role (``tag``, ``steps``, ``values``), ``epochs`` (the step and
        number of each), ``evaluations`` (steps) and ``stamp``; ``unchanged`` alone if the page's stamp still
        holds.
    """
    monitors = asked.getlist("monitor")
    listing = provider.list_scalars(
        ctx, experiment_id=experiment, plugin_name=SCALARS, run_tag_filter=RunTagFilter(runs=[run])
    ).get(run, {})
    tags = curve_tags(listing, monitors)
    picked = picked_tags(tags, asked)
    evaluated = evaluation_tag(tags)
    epoch = next((tag for tag in ("epoch", "train/epoch") if tag in listing), None)
    read = sorted({tag for tag in (*picked.values(), evaluated, epoch) if tag is not None})
    last = [(tag, listing[tag].max_step, listing[tag].max_wall_time) for tag in read]
    stamp = json.dumps([len(tags), last])
    if stamp == asked.get("stamp"):
        return json.dumps({"unchanged": True})
    data = _standing(provider, ctx, experiment, run, read, monitors)
    curves = {role: {"tag": tag, **thinned(data[tag])} for role, tag in picked.items() if tag is not None}
    answer = {
        "tags": tags,
        "curves": curves,
        "epochs": epochs_of(data.get(epoch, [])),
        "evaluations": [int(datum.step) for datum in data.get(evaluated, [])],
        "stamp": stamp,
    }
    return json.dumps(answer, allow_nan=False)


def picked_tags(tags: list[str], asked: Any) -> dict[str, str | None]:
    """The tag of each role; a chosen one that this run lacks gives way to the one found by its name."""
    picked = suggested(tags)
    for role in ROLES:
        choice = asked.get(role, "")
        if choice == _NONE:
            picked[role] = None
        elif choice.startswith(_CHOSEN) and choice[1:] in tags:
            picked[role] = choice[1:]
    return picked


def _standing(
    provider: Any, ctx: Any, experiment: str, run: str, tags: list[str], monitors: list[str]
) -> dict[str | None, list[Any]]:
    """Data of each tag without what resumed sessions replaced."""
    if not tags:
        return {}
    scalars = provider.read_scalars(
        ctx, experiment_id=experiment, plugin_name=SCALARS, downsample=_ALL,
        run_tag_filter=RunTagFilter([run], tags),
    ).get(run, {})  # fmt: skip
    marks = provider.read_tensors(
        ctx, experiment_id=experiment, plugin_name=PLUGIN, downsample=_ALL,
        run_tag_filter=RunTagFilter([run], [session_tag(monitor) for monitor in monitors]),
    ).get(run, {})  # fmt: skip
    sessions = [session for events in marks.values() for session in events]
    return {tag: in_force(scalars.get(tag, []), sessions) for tag in tags}
