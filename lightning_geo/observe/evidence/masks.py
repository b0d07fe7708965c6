"""Masks in every form that attention functions accept, and which entries hide a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.kernels import HIDDEN_BELOW, BlockRule
from lightning_geo.observe.evidence.axes import Axes
from lightning_geo.observe.evidence.tensor_table import TensorTable
from lightning_geo.utils._torch import version_of

__all__ = ["MaskReader", "keys_seen", "rows_of", "visible", "with_hidden"]

#: An additive mask hides with an entry this far below the others: exp(-50) is lost beside 1 in float32.
_HIDING = -50.0

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

#: Query rows read in one step, so that a long mask needs no copy of its own size.
_ROWS = 1024


def visible(mask: Tensor) -> Tensor:
    """Bool, True where a mask lets a query attend to a key."""
    return mask if mask.dtype == torch.bool else mask > HIDDEN_BELOW


def with_hidden(mask: Tensor) -> Tensor:
    """Write -inf where an additive mask hides: below -9000 in any case, and where a gap sets entries apart.

    Swin hides with -100, other models with -1000, while ALiBi's bias reaches such values without hiding. The
    entries of a hiding mask form two clusters, at 0 and at its constant, each as wide as the added bias; a
    bias that grows with distance fills the range in between. So an empty middle half means that the lower
    half of the range is hidden.

    Args:
        mask: Additive, any shape.

    Example:
        >>> with_hidden(torch.tensor([0.0, 1.0, -100.0, -99.0]))
        tensor([0., 1., -inf, -inf])
        >>> with_hidden(torch.tensor([0.0, -50.0, -100.0]))
        tensor([   0.,  -50., -100.])
    """
    ordinary = mask > HIDDEN_BELOW
    lowest = torch.where(ordinary, mask, torch.inf).amin()
    highest = torch.where(ordinary, mask, -torch.inf).amax()
    quarter = (highest - lowest) / 4
    middle = (mask > lowest + quarter) & (mask < highest - quarter)
    apart = (lowest <= _HIDING) & (4 * quarter >= -_HIDING) & ~middle.any()
    limit = torch.where(apart, lowest + 2 * quarter, HIDDEN_BELOW)
    return torch.where(mask <= limit, -torch.inf, mask)


class MaskReader:
    """Reads each mask once, however many layers use it.

    Masks are compared by identity and version. A mask that the model creates anew in each layer is read anew,
    and forgotten when it is freed.
    """

    def __init__(self) -> None:
        #: question -> mask -> the mask's version when it was read, and the result
        self._read: dict[str, TensorTable[tuple[int, Any]]] = {}

    def clear(self) -> None:
        """Forget the masks of the forward pass that ended."""
        self._read.clear()

    def once(self, what: str, mask: Any, function: Callable[[Any], Any]) -> Any:
        """Return ``function(mask)``, computed the first time only."""
        table = self._read.setdefault(what, TensorTable())
        version = version_of(mask) if isinstance(mask, Tensor) and not mask.is_inference() else 0
        known = table.get(mask)
        if known is None or known[0] != version:
            known = version, function(mask)
            table.set(mask, known)
        return known[1]

    def once_of_both(self, what: str, first: Tensor, second: Tensor, function: Callable[..., Any]) -> Any:
        """Return ``function(first, second)``, computed the first time only."""
        by_second = self.once(what, first, lambda _: TensorTable())
        known = by_second.get(second)
        if known is None:
            known = function(first, second)
            by_second.set(second, known)
        return known

    def hiding(self, mask: Any) -> Any:
        """Return the mask with -inf where it hides; bool masks and block masks stay as they are."""
        if not isinstance(mask, Tensor) or mask.dtype == torch.bool:
            return mask
        return self.once("hiding", mask, with_hidden)

    def laid_out(self, mask: Any, shape: tuple[int, int]) -> Any:
        """Return the mask with the four axes of a [B, H] call, and -inf where it hides."""
        if not isinstance(mask, Tensor):
            return mask
        if mask.dtype not in (torch.bool, *_FLOATS):
            mask = mask > 0
        hiding = self.hiding(mask)
        return hiding if mask.dim() == 4 else Axes(1).mask(hiding, shape)

    def seen(self, mask: Tensor | BlockMask, queries: int, keys: int, front: int) -> Tensor:
        """Return bool [B or 1, Nk], True for keys that are tokens; see :func:`keys_seen`."""
        return self.once(f"seen {front}", mask, lambda m: keys_seen(m, queries, keys, front))  # type: ignore[no-any-return]


def keys_seen(mask: Tensor | BlockMask, queries: int, keys: int, front: int = 0) -> Tensor:
    """Distinguish real keys from padding, by the queries that may attend to them.

    No query sees a padded key, except its own where a mask keeps rows from being empty. A causal mask shows
    the last token to its own query only: it is real if the token before it is. A token that sees only itself
    and that no other query sees is a one-token document, unless several such tokens lie at an end of a row.

    Args:
        mask: [B or 1, H or 1, Nq or 1, Nk or 1], bool or additive with -inf where it hides; or a BlockMask.
        queries: Nq.
        keys: Nk.
        front: Keys before that of query 0; query i and key ``front + i`` are one token.

    Returns:
        bool [B or 1, Nk], True for tokens.
    """
    if isinstance(mask, Tensor) and (mask.shape[-2] == 1 or mask.shape[-1] == 1):
        return visible(mask).any(1).any(1).expand(-1, keys)
    seen_by: Tensor | None = None  # how many queries see each key
    own: list[Tensor] = []
    alone: list[Tensor] = []
    live: list[Tensor] = []
    later: Tensor | None = None
    start = front
    for rows in rows_of(mask, queries, keys):
        count = rows.sum(-2)
        seen_by = count if seen_by is None else seen_by + count
        place = torch.arange(start, start + rows.shape[1], device=rows.device)
        start += rows.shape[1]
        itself = rows.gather(-1, place.clamp(max=keys - 1)[None, :, None].expand(len(rows), -1, 1))[..., 0]
        own.append(itself & (place < keys))
        seen = rows.sum(-1)
        alone.append(own[-1] & (seen == 1))
        live.append(seen > 0)
        column = torch.arange(keys, device=rows.device)
        ahead = (rows & (column > place[:, None]) & (column < front + queries)).flatten(1).any(-1)
        later = ahead if later is None else later | ahead
    assert seen_by is not None
    assert later is not None
    itself, by_itself, busy = (_as_keys(flags, keys, front) for flags in (own, alone, live))
    return _tokens(seen_by, itself, by_itself, busy, later)


def rows_of(mask: Tensor | BlockMask, queries: int, keys: int) -> Iterator[Tensor]:
    """Yield blocks of query rows in order: bool [B or 1, rows, Nk], True where any head may attend."""
    rule = None if isinstance(mask, Tensor) else BlockRule.of(mask)
    for start in range(0, queries, _ROWS):
        stop = min(start + _ROWS, queries)
        if rule is not None:
            yield rule.visible(slice(None), slice(None), slice(start, stop), slice(0, keys)).any(1)
        else:
            assert isinstance(mask, Tensor)
            yield visible(mask[:, :, start:stop]).any(1)


def _as_keys(rows: list[Tensor], keys: int, front: int) -> Tensor:
    """Move flags of queries [B, Nq] to the keys of the same tokens, [B, Nk]."""
    if len(rows) == 1 and front == 0 and rows[0].shape[1] == keys:
        return rows[0]
    joined = torch.cat(rows, -1)[:, : max(keys - front, 0)]
    result = joined.new_zeros(len(joined), keys)
    result[:, front : front + joined.shape[1]] = joined
    return result


def _tokens(seen_by: Tensor, itself: Tensor, alone: Tensor, live: Tensor, later: Tensor) -> Tensor:
    """Decide which keys are tokens.

    Args:
        seen_by: [B, Nk], number of queries that see a key.
        itself: Whether the key's own query sees it.
        alone: Whether that query sees nothing else.
        live: Whether that query sees any key.
        later: [B], whether any query sees a key after its own.
    """
    others, seen = seen_by > itself, seen_by > 0
    # In a causal mask only its own query sees the last token, since later queries are padding.
    busy = (live & ~alone).view(torch.uint8)
    after = busy.flip(-1).cumsum(-1).flip(-1) - busy
    before = torch.cat([torch.ones_like(others[:, :1]), others[:, :-1]], -1)
    others = others | (itself & ~alone & ~later[:, None] & (after == 0) & before)
    padded = (~others).view(torch.uint8)
    runs = torch.stack([padded, padded.flip(-1)]).cumprod(-1)
    # A single such key at an end is padding if another sequence has more there, or if it does not see itself.
    ends = runs * (runs.sum(-1).amax(-1) > 1)[:, None, None]
    at_an_end = ends[0] + ends[1].flip(-1)
    tokens = others | (itself & alone & ~others & (at_an_end == 0))
    # Where padding does not see itself, a key that sees itself is no padding.
    tokens = tokens | (itself & (~seen).any(-1, keepdim=True))
    # Where every key sees only itself, padding is indistinguishable: take all as tokens.
    return tokens | (itself & ~tokens.any(-1, keepdim=True))
