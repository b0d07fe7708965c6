"""Tests whether a call's first axis holds sequences, by running the model on a part of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from lightning_geo.observe import AttentionCall, CallKey, Tap
from lightning_geo.observe.heads.head_factors import scaled_heads
from lightning_geo.observe.replay.replica import Replica
from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.probe.call import ProbeCall

__all__ = ["divides", "surely_divides"]

#: Names of arguments whose first axis always holds sequences.
_BATCH_FIRST = ("input_ids", "attention_mask", "pixel_values", "inputs_embeds")


def surely_divides(recorded: ProbeCall) -> bool:
    """Whether a call's first axis holds sequences by the names of its arguments, or has one entry."""
    named = [recorded.call.kwargs, *(x for x in recorded.call.args if isinstance(x, dict))]
    return recorded.rows < 2 or any(name in place for place in named for name in _BATCH_FIRST)


def divides(
    replica: Replica, recorded: ProbeCall, context: Callable[[], AbstractContextManager[object]]
) -> bool:
    """Whether a call can be divided along the first axis of its tensors.

    It cannot if that axis holds tokens: with half of them, attention has fewer keys but as many sequences.

    Args:
        replica: Runs the model.
        recorded: The call, on the model's device.
        context: Returns the context of the training precision.
    """
    call, rows = recorded.call, recorded.rows
    if surely_divides(recorded):
        return True
    try:
        replica.try_out(call.run, context)
        whole = _shapes(replica, call, context)
    except Exception:  # the sample will fail in the same way, and reports the reason
        return True
    part = 2 if rows > 2 else 1
    try:
        fewer = _shapes(replica, recorded.take(slice(part)).call, context)
    except Exception:
        return False
    pairs = list(zip(whole, fewer, strict=False))
    shrinks = any(less * rows == more * part for (more, _), (less, _) in pairs)
    return shrinks or not any(more == less and keys > kept for (more, keys), (less, kept) in pairs)


def _shapes(
    replica: Replica, call: Call, context: Callable[[], AbstractContextManager[object]]
) -> list[tuple[int, int]]:
    """Return sequences and keys of each attention call, packed calls left out."""
    shapes: list[tuple[int, int]] = []

    def look(key: CallKey, attention: AttentionCall) -> None:
        if attention.documents is None:
            batch, _, keys = attention.lengths
            shapes.append((batch, keys))

    with (
        replica.running() as model,
        scaled_heads(Tap(model), look, replays=True),
        replica.once(model),
        context(),
    ):
        call.run(model)
    return shapes
