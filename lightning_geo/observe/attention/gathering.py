"""Joins attention calls that are parts of one attention: single heads, some rows, some sequences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.observe.attention.by_hand_calls import assembled
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.axes import declared_heads
from lightning_geo.observe.evidence.held_call import Held
from lightning_geo.observe.layers.frame import Frame

__all__ = ["Resolved", "between_channels", "gatherer", "resolve"]

_ROWS = (
    "its softmax covers only some of the queries, and the other softmaxes in its module do not cover exactly "
    "the rest"
)
_HEADS = "its heads are computed one by one, with masks or sizes that differ"


@dataclass
class Resolved:
    """Held calls after parts of one attention were joined.

    Args:
        calls: The calls to show.
        shares: Whether they hold different sequences of one call.
        reason: Why some held calls are left out; empty if none is.
    """

    calls: list[Held]
    shares: bool = False
    reason: str = ""


def between_channels(call: AttentionCall, tokens: Sequence[int]) -> bool:
    """Whether a call's rows are features, and its products run over tokens (XCiT, DaViT).

    Args:
        call: One attention call.
        tokens: How many tokens the running modules were given.
    """
    query, key = call.query, call.key
    if query is None or key is None:
        return False
    batch, inner = query.shape[0], query.shape[-1]
    if batch * inner not in tokens:
        return False
    if batch * query.shape[2] not in tokens and batch * key.shape[2] not in tokens:
        return True
    # Features and tokens are equally many. A projection writes features next to each other: strides decide.
    return inner == key.shape[2] and all(x.stride(-2) < x.stride(-1) for x in (query, key))


def gatherer(
    held: Held, inside: Sequence[Frame], frames: Sequence[Frame], modules: Mapping[str, nn.Module]
) -> Frame | None:
    """Find the module whose attention the call may be a part of; the call is held until that module ends.

    Args:
        held: The call.
        inside: The running modules of its layer, outermost first.
        frames: All running modules.
        modules: The observed model's modules by path.
    """
    call = held.call
    if call.heads == 1:
        for frame in reversed(inside):
            declared = declared_heads(frame.module)
            if declared is not None:
                if declared > 1:
                    return frame
                break
        owner = _list_of_heads(call, frames, modules)
        if owner is not None:
            return owner
    if call.cross:
        return None
    batch, queries, _ = call.lengths
    tokens = _tokens_of(frames[-1], call)
    return None if tokens is None or batch * queries >= tokens else frames[-1]


def _tokens_of(frame: Frame, call: AttentionCall) -> int | None:
    """Count the tokens of a module's widest input hidden states, leaving out inputs as wide as one head."""
    width = 0 if call.query is None or call.heads == 1 else call.query.shape[-1]
    states = [
        x for x in frame.given.values()
        if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3 and x.shape[-1] not in (0, width)
    ]  # fmt: skip
    widest = max(states, key=lambda x: int(x.shape[-1]), default=None)
    return None if widest is None else widest.numel() // widest.shape[-1]


def _list_of_heads(
    call: AttentionCall, frames: Sequence[Frame], modules: Mapping[str, nn.Module]
) -> Frame | None:
    """Find the module with a list of single-head modules, if one of these computed the call."""
    for index in range(len(frames) - 1, 0, -1):
        item, owner = frames[index], frames[index - 1]
        path, _, number = item.name.rpartition(".")
        heads = modules.get(path)
        if not number.isdigit() or not isinstance(heads, (nn.ModuleList, nn.Sequential)):
            continue
        if path.rpartition(".")[0] != owner.name or isinstance(owner.module, nn.Sequential) or len(heads) < 2:
            return None
        declared = declared_heads(owner.module)
        hidden = next((x for x in item.given.values() if isinstance(x, Tensor) and x.dim() == 3), None)
        fits = call.value is not None and hidden is not None
        wide = fits and call.value.shape[-1] * len(heads) == hidden.shape[-1]  # type: ignore[union-attr]
        return owner if wide or declared == len(heads) else None
    return None


def resolve(frame: Frame, held: list[Held], tokens: Sequence[int]) -> Resolved:
    """Join the calls in which a module computed its attention part by part.

    Args:
        frame: The module.
        held: Calls whose queries have the same origin, in order.
        tokens: Token counts of the module's inputs.
    """
    held = [replace(one, late=True) for one in held]
    if len(held) == 1:
        return Resolved(held)
    calls = [one.call for one in held]
    covered = [call.lengths[0] * call.lengths[1] for call in calls]
    whole = sum(covered) in tokens and not set(covered) & set(tokens)
    if not whole and all(call.heads == 1 for call in calls) and len({call.lengths for call in calls}) == 1:
        joined = _joined_heads(calls)
        if joined is None:
            return Resolved([], reason=_HEADS)
        return Resolved([replace(held[0], call=joined, module=frame.name)])
    if whole and len({(call.heads, *call.lengths[1:]) for call in calls}) == 1:
        return Resolved(held, shares=True)
    if whole and len({call.heads for call in calls}) == 1 and all(call.scores is not None for call in calls):
        return Resolved([replace(held[0], call=assembled(calls), module=frame.name)])
    return Resolved([], reason=_ROWS)


def _joined_heads(calls: list[AttentionCall]) -> AttentionCall | None:
    """Join calls of one head each into one call; None if their masks or sizes differ."""
    joined: dict[str, Tensor | None] = {}
    for role in ("query", "key", "value", "output", "scores"):
        parts = [x for x in (getattr(call, role) for call in calls) if x is not None]
        sizes = {part.shape for part in parts}
        if parts and (len(parts) < len(calls) or len(sizes) > 1):
            return None
        joined[role] = torch.cat(parts, dim=1) if parts else None
    masks = calls[0].masks
    for call in calls[1:]:
        pairs = itertools.zip_longest(masks, call.masks)
        if any(one is not other and not _equal(one, other) for one, other in pairs):
            return None
    same = {(c.is_causal, c.window, c.scale, c.softcap, c.offset, c.cross) for c in calls}
    return replace(calls[0], **joined) if len(same) == 1 else None  # type: ignore[arg-type]


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
