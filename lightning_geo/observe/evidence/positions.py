"""Where queries stand among keys, and whether these are tokens of the same sequence."""

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

    The module declares cross-attention; else it is told by what queries and keys were computed from; else,
    where a module on the way shows no torch functions, by whether the attention module was given one
    sequence or several. What all this leaves open has no positions.

    Args:
        call: One attention call.
        module: Which computed it.
        frames: The running modules, outermost first.
        query: The queries' origin.
        key: The keys'.
        behind: Whether keys beyond the queries' own were put behind them.
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
        # what aligns causality at the last key (FlashAttention) says it too
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
    """Whether the attention module was given hidden states of one sequence; None where that says nothing."""
    if not frames:
        return None
    given = [
        x for x in frames[-1].given.values()
        if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3
    ]  # fmt: skip
    return True if len({id(x) for x in given}) == 1 else None
