"""Pairs of query and key that masks leave visible: later keys, and padding."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.kernels.blocks import BlockRule
from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.workspace import kept_of
from lightning_geo.utils.device_copy import without_waiting
from lightning_geo.utils.shapes import Bool, Float, Shaped

__all__ = ["Sight", "visible_pairs"]

#: Query rows of which masks are read, and most pairs of them with keys, of all sequences and heads.
_ROWS, _PAIRS = 64, 1 << 24


class Sight(NamedTuple):
    """The sizes of a call, its causality and its window: all that limits visible keys, except masks.

    Args:
        batch: Number of sequences.
        queries: Nq.
        keys: Nk.
        offset: Key position of query row 0.
        left: Keys visible before a row's position; None for all.
        right: Keys visible after a row's position; None for all, 0 for causal.
        has_padding_mask: Whether tokens that are not real are known to be padding.
    """

    batch: int
    queries: int
    keys: int
    offset: int = 0
    left: int | None = None
    right: int | None = None
    has_padding_mask: bool = False

    @property
    def is_square(self) -> bool:
        """Whether query i and key i are one token."""
        return self.queries == self.keys and self.offset == 0


def visible_pairs(
    sight: Sight,
    masks: tuple[Shaped[Tensor, "#batch #heads #queries #keys"] | BlockMask, ...],
    query_mask: Bool[Tensor, "batch queries"] | None,
    key_mask: Bool[Tensor, "batch keys"] | None,
    padding: Bool[Tensor, "batch keys"] | None,
    device: torch.device,
) -> Float[Tensor, " 4"]:
    """Count pairs of a real query and a later real key, and of a real query and padding.

    Counts are exact where masks are the real keys and a band; else those of at most 64 query rows at equal
    distances, which have all pairs where there are no more rows. Heads are averaged.

    Args:
        sight: Sizes, causality and window.
        masks: Each bool (True = attend), additive float, or a ``BlockMask``. All of them apply.
        query_mask: True = real token; None if all are.
        key_mask: Likewise.
        padding: True = padding, which the two masks may take for tokens; None to go by ``sight``.
        device: Of the call.

    Returns:
        Visible later keys, visible padding, all later keys, all padding; the last two are 0 where masks hide
        every key, which marks masks that turned out not to be as assumed.
    """
    tensors = query_mask, key_mask, padding, *(m for m in masks if isinstance(m, Tensor))
    rules = tuple(m for m in masks if not isinstance(m, Tensor))
    plain = sight.is_square and sight.right in (None, 0)
    if plain and not masks and all(x is None for x in tensors):
        pairs = sight.batch * sight.keys * (sight.keys - 1) / 2
        return _on((pairs * (sight.right is None), 0.0, pairs, 0.0), device)
    of_tokens = (
        key_mask is not None and query_mask is key_mask and padding is None and not rules
        and plain
        and all(_is(m, key_mask) for m in masks if isinstance(m, Tensor))
        and (masks or not sight.has_padding_mask or (sight.left is None and sight.right is None))
    )  # fmt: skip
    make = _of_tokens if of_tokens else _of_rows
    result: Tensor = kept_of(make, tensors, sight, rules, device)
    return result


def _is(mask: Shaped[Tensor, "#batch #heads #queries #keys"], keys: Bool[Tensor, "batch keys"]) -> bool:
    """Whether a mask is the tensor of these keys, and no copy of it."""
    return mask.dtype == torch.bool and mask.numel() == keys.numel() and mask.data_ptr() == keys.data_ptr()


def _on(numbers: tuple[Any, ...], device: torch.device) -> Float[Tensor, " ..."]:
    return without_waiting(torch.tensor(numbers, dtype=_exact(device)), device)


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _of_tokens(
    tensors: tuple[Shaped[Tensor, " ..."] | None, ...],
    sight: Sight,
    rules: tuple[BlockMask, ...],
    device: torch.device,
) -> Float[Tensor, " 4"]:
    """Count where each real query sees all real keys of its side, and either all padding or none."""
    _, real, _, *masks = tensors
    assert real is not None
    number = real.sum(-1, dtype=_exact(device))
    sums = torch.stack([number, number * number]).sum(-1)
    # of n real tokens in a row of N: n(n − 1)/2 later keys, n(N − n) pairs with padding
    later, padding = (-0.5, 0.5), (sight.keys * sight.has_padding_mask, -1.0 * sight.has_padding_mask)
    nothing = (0.0, 0.0)
    table = (nothing if sight.right == 0 else later, nothing if masks else padding, later, padding)
    return _on(table, device) @ sums


def _of_rows(
    tensors: tuple[Shaped[Tensor, " ..."] | None, ...],
    sight: Sight,
    rules: tuple[BlockMask, ...],
    device: torch.device,
) -> Float[Tensor, " 4"]:
    """Count with any other masks, on a selection of query rows."""
    query_mask, key_mask, padding, *masks = tensors
    heads = max([mask.shape[1] for mask in (*masks, *rules) if mask is not None], default=1)
    count = max(_PAIRS // (sight.batch * heads * sight.keys), 1)
    step = max(math.ceil(sight.queries / min(count, _ROWS)), 1)
    rows = torch.arange(0, sight.queries, step, device=device)
    position = rows[:, None] + sight.offset if sight.offset else rows[:, None]
    column = torch.arange(sight.keys, device=device)
    limits: list[Tensor] = []
    for mask in masks:
        assert mask is not None
        part = mask[:, :, ::step] if mask.shape[2] > 1 else mask
        limits.append(part if part.dtype == torch.bool else ~(part <= HIDDEN_BELOW))
    limits += [rule.of_rows(rows, sight.keys) for rule in map(BlockRule.of, rules)]
    if sight.left is not None:
        limits.append((column >= position - sight.left)[None, None])
    if sight.right is not None:
        limits.append((column <= position + sight.right)[None, None])
    if not limits:
        limits.append(torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device))
    visible = functools.reduce(torch.bitwise_and, limits)
    if padding is not None:  # the model was not given this padding: it does not count as real
        query_mask = ~padding if query_mask is None else query_mask & ~padding
        key_mask = ~padding if key_mask is None else key_mask & ~padding
    elif sight.has_padding_mask and key_mask is not None:
        padding = ~key_mask
    if query_mask is None:
        real = torch.ones(1, len(rows), dtype=torch.bool, device=device)
    else:
        real = query_mask[:, ::step]
    pairs = real[:, :, None] & (column > position)
    if key_mask is not None:
        pairs = pairs & key_mask[:, None]
    beyond = torch.zeros_like(pairs) if padding is None else real[:, :, None] & padding[:, None]
    # a sequence whose masks hide every key is not counted: its real masks are unknown
    seen = (visible & real[:, None, :, None]).flatten(1).any(-1)
    asked = torch.stack([x.expand(sight.batch, len(rows), sight.keys) for x in (pairs, beyond)], 1)
    asked = asked & seen[:, None, None, None]  # [B, 2, rows, keys]
    shown = (asked[:, :, None] & visible[:, None]).sum((-2, -1)).to(_exact(device)).mean(-1)
    return torch.cat([shown.sum(0), asked.sum((0, -2, -1))])
