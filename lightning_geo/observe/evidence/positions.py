"""The positions of queries among keys, and whether both are tokens of the same sequence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.origins import Origin
from lightning_geo.observe.layers.frame import Frame

__all__ = ["set_positions"]

#: Arguments that hold keys of earlier calls.
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache")


def set_positions(
    call: AttentionCall,
    module: nn.Module,
    frames: Sequence[Frame],
    query: Origin | None,
    key: Origin | None,
    *,
    behind: bool = False,
) -> None:
    """Fill in ``cross`` and ``offset`` from the evidence, in the order of its weight.

    The module's declaration decides whether the call is cross-attention; without one, the origins of queries
    and keys decide; without origins, because some module on the way shows no torch functions, the number of
    sequences among the attention module's inputs does. If none decides, queries have no positions.

    Args:
        call: One attention call.
        module: The module that computed it.
        frames: The running modules, outermost first.
        query: The queries' origin.
        key: The keys'.
        behind: Whether extra keys were appended after the queries' own, not put in front.
    """
    _, queries, keys = call.lengths
    declared = getattr(module, "is_cross_attention", None)
    same: bool | None
    if isinstance(declared, bool):
        same = not declared
    elif query is not None and key is not None:
        same = query.same_sequence(key)
    else:
        same = _given_one_sequence(frames)
    call.cross = same is False
    if same is not True:
        call.offset = None
    elif queries == keys or behind:
        call.offset = 0
    else:
        # FlashAttention aligns causality at the last key, so that its call has an offset already.
        call.offset = _keys_in_front(queries, keys, frames, query, key) or call.offset or None


def _keys_in_front(
    queries: int, keys: int, frames: Sequence[Frame], query: Origin | None, key: Origin | None
) -> int | None:
    if query is not None and key is not None:
        front = key.front - query.front
        if 0 < front <= keys - queries:
            return front
    cached = any(frame.given.get(name) is not None for frame in frames for name in _CACHES)
    static = any("Static" in type(frame.given.get(name)).__name__ for frame in frames for name in _CACHES)
    return keys - queries if cached and not static and keys > queries else None


def _given_one_sequence(frames: Sequence[Frame]) -> bool | None:
    """Whether the attention module's inputs have hidden states of one sequence only; None if undecided."""
    if not frames:
        return None
    states = [
        x for x in frames[-1].given.values()
        if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3
    ]  # fmt: skip
    return True if len({id(x) for x in states}) == 1 else None
