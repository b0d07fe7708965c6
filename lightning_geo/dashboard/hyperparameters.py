"""Hyperparameters of runs, as TensorBoard's own tab HParams has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from tensorboard.plugins.hparams.error import HParamsError
from tensorboard.plugins.hparams.metadata import (
    PLUGIN_NAME,
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

__all__ = ["Value", "read_hyperparameters", "session_of"]

Value = float | bool | str

_LONGEST = 200  # letters of a text


def read_hyperparameters(provider: Any, ctx: Any, experiment: str) -> dict[str, list[tuple[str, Value]]]:
    """Return name and value of each hyperparameter by run; sessions that are damaged are left out.

    Lightning's ``save_hyperparameters`` writes them into the run itself, transformers into a run below it.

    Args:
        provider: TensorBoard's data provider.
        ctx: Of the request.
        experiment: Of the request.
    """
    listing = provider.list_tensors(ctx, experiment_id=experiment, plugin_name=PLUGIN_NAME)
    sessions = {}
    for run, tags in listing.items():
        if SESSION_START_INFO_TAG not in tags:
            continue
        try:
            start = parse_session_start_info_plugin_data(tags[SESSION_START_INFO_TAG].plugin_content)
        except (DecodeError, HParamsError):
            continue
        values = {name: _value(item) for name, item in start.hparams.items()}
        sessions[run] = [(name, value) for name, value in sorted(values.items()) if value is not None]
    return sessions


def session_of(run: str, sessions: Iterable[str]) -> str | None:
    """Return the session that a run belongs to: itself, the nearest above it, or the only one below it.

    Example:
        >>> session_of("sweep/a/version_0", ["sweep", "sweep/a"])
        'sweep/a'
        >>> session_of("a", ["a/1700", "ab"]), session_of("a", ["a/1", "a/2"])
        ('a/1700', None)
    """
    names = list(sessions)
    above = [name for name in names if f"{run}/".startswith(f"{name}/")]
    below = [name for name in names if name.startswith(f"{run}/")]
    return max(above, key=len) if above else below[0] if len(below) == 1 else None


def _value(item: Any) -> Value | None:
    kind = item.WhichOneof("kind")
    if kind == "number_value":
        return float(item.number_value) if math.isfinite(item.number_value) else str(item.number_value)
    if kind == "bool_value":
        return bool(item.bool_value)
    return str(item.string_value)[:_LONGEST] if kind == "string_value" else None
