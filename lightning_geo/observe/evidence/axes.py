"""Which axis is heads: from what modules declare, and from how many tokens there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_geo.utils.errors import GeometryError

__all__ = ["Axes", "UnknownAxesError", "config_of", "declared_heads", "find_axes"]

_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "nheads", "heads", "num_head",
          "attention_heads", "encoder_attention_heads", "decoder_attention_heads")  # fmt: skip


class UnknownAxesError(GeometryError, LookupError):
    """Nothing says which axis is heads."""


def config_of(module: nn.Module) -> Any:
    """A module's ``config``; None where it has none, or a property of that name fails."""
    try:
        return getattr(module, "config", None)
    except Exception:
        return None


def declared_heads(module: nn.Module) -> int | None:
    """How many heads a module says that it has: an attribute of its own, or of its config."""
    for holder in (module, config_of(module)):
        if holder is None:
            continue
        for name in _NAMES:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


@dataclass(frozen=True)
class Axes:
    """How the leading axes of an attention's tensors become batch and heads.

    Args:
        heads: Index of the axis of heads among the leading axes; None where there is one head without axis.
        folded: Heads in the first axis where it holds batch and heads in one; else 0.
        heads_first: Whether heads vary slower there.
        groups: Whether heads are two axes, groups and the heads of each, the first of which is ``heads``.
    """

    heads: int | None
    folded: int = 0
    heads_first: bool = False
    groups: bool = False

    def is_next_to_features(self, x: Tensor) -> bool:
        """Whether the last axis of heads lies in memory as a projection lays it out."""
        assert self.heads is not None
        last = self.heads + self.groups
        return x.shape[last] > 1 and x.stride(last) == x.shape[-1] * x.stride(-1)

    def __call__(self, x: Tensor) -> Tensor:
        """[*lead, rows, columns] to [B, H, rows, columns]; fewer heads than queries have stay fewer."""
        if self.groups:
            assert self.heads is not None
            return Axes(self.heads)(x.flatten(self.heads, self.heads + 1))
        if x.dim() == 2:
            return x[None, None]
        if self.folded:
            return self._unfolded(x, x.shape[0] // self.folded)
        if self.heads is None:
            return x.flatten(0, -3).unsqueeze(1)
        x = x.movedim(self.heads, -3)
        if x.dim() < 4:
            x = x[None]
        return x if x.dim() == 4 else x.flatten(0, -4)

    def grouped(self, x: Tensor, queries: Tensor) -> Tensor:
        """The same for keys and values, whose folded axis holds fewer heads where heads are grouped."""
        if not self.folded or x.dim() != 3:
            return self(x)
        batch = queries.shape[0] // self.folded
        if x.shape[0] % batch or self.folded % (x.shape[0] // batch):
            raise UnknownAxesError("the keys' heads and batch are one axis that fits neither")
        return self._unfolded(x, batch)

    def _unfolded(self, x: Tensor, batch: int) -> Tensor:
        found: Tensor = x.unflatten(0, (-1, batch) if self.heads_first else (batch, -1))
        return found.transpose(0, 1) if self.heads_first else found

    def mask(self, mask: Tensor, lead: Sequence[int]) -> Tensor:
        """A mask that broadcasts over the leading axes ``lead``, to [B or 1, H or 1, Nq or 1, Nk or 1]."""
        if mask.dim() < 2:
            mask = mask.reshape((1,) * (2 - mask.dim()) + tuple(mask.shape))
        mask = mask[(None,) * (len(lead) + 2 - mask.dim())]
        if self.groups:
            assert self.heads is not None
            first, after = self.heads, self.heads + 2
            groups, each = lead[first:after]
            if tuple(mask.shape[first:after]) != (1, 1):
                mask = mask.expand(*mask.shape[:first], groups, each, *mask.shape[after:])
            joined = (*lead[:first], groups * each, *lead[after:])
            return Axes(first).mask(mask.flatten(first, first + 1), joined)
        if not lead or self.folded:
            if self.folded and mask.shape[0] != 1:
                return self._unfolded(mask, mask.shape[0] // self.folded)
            return mask.reshape(1, 1, *mask.shape[-2:])
        if self.heads is None:
            mask = mask.unsqueeze(len(lead))
            sizes = [*lead, 1]
        else:
            mask = mask.movedim(self.heads, len(lead) - 1)
            sizes = [n for i, n in enumerate(lead) if i != self.heads] + [lead[self.heads]]
        if all(n == 1 for n in mask.shape[:-3]):
            return mask.reshape(1, *mask.shape[-3:])
        return mask.expand(*sizes[:-1], *mask.shape[-3:]).flatten(0, -4)


def find_axes(
    x: Tensor,
    declared: int | None,
    tokens: Sequence[int],
    heads_first: Callable[[Tensor, int], bool | None] = lambda x, heads: None,
    key: Tensor | None = None,
) -> Axes:
    """Tell heads from batch in queries (or probabilities) ``[*lead, queries, columns]``.

    A module that declares its heads decides, as far as sizes allow. The number of tokens in the layer's input
    decides what it leaves open: one head's rows are as many as these. What both leave open is decided by
    memory, where heads that a projection made lie next to their features, and by PyTorch's convention
    [B, H, N, D] for four axes, in this order.

    Args:
        x: What attention was given for queries.
        declared: Heads that the module declares; None if it does not.
        tokens: How many tokens modules around the call were given, those of its layer first, from outside in.
        heads_first: Tells whether heads vary slower than sequences where both are the first of three axes.
        key: What attention was given for keys: where queries are pooled, these are the layer's tokens, and
            where heads are grouped, they have fewer of them.

    Raises:
        UnknownAxesError: If nothing decides.

    Example:
        >>> import torch
        >>> find_axes(torch.zeros(2, 3, 5, 8), declared=3, tokens=[10])
        Axes(heads=1, folded=0, heads_first=False, groups=False)
    """
    lead, rows = x.shape[:-2], x.shape[-2]
    if not lead:
        return Axes(None)
    if len(lead) == 1:
        return _folded_axes(x, declared, tokens, heads_first)
    grouped = _axis_of_groups(lead, key, declared) if declared or len(lead) == 2 else None
    if grouped is not None:
        return Axes(grouped)
    counted = _counted_axes(x, declared, tokens, key)
    if counted is None or (declared == 1 and (not counted or any(lead[i] == 1 for i in counted))):
        return Axes(None)
    whole = not tokens or math.prod(lead) // (declared or 1) * rows in tokens
    readings = _readings(lead, declared, counted, whole=whole)
    if len(readings) > 1:
        # A projection puts each head's features next to the last axis of heads: strides show which it is.
        near = [r for r in readings if r.is_next_to_features(x)]
        readings = near if len(near) == 1 else [Axes(1)] if len(lead) == 2 else []
    if len(readings) == 1:
        return readings[0]
    if len(lead) == 2 and declared not in lead and (declared is None or not tokens or 1 in counted):
        return Axes(1)
    declaration = "declares no heads" if declared is None else f"declares {declared} heads"
    raise UnknownAxesError(
        f"cannot tell which axis of {list(x.shape)} is heads: the module {declaration}. Give it a "
        "`num_heads` attribute, or call attention with [batch, heads, tokens, features]"
    )


def _folded_axes(
    x: Tensor,
    declared: int | None,
    tokens: Sequence[int],
    heads_first: Callable[[Tensor, int], bool | None],
) -> Axes:
    """Return the axes of three-dimensional queries, whose first axis is batch, heads or both.

    Raises:
        UnknownAxesError: If it is both, and neither module nor operations say which varies slower.
    """
    size = x.shape[0]
    heads = _heads_in(size, x.shape[-2], declared, tokens)
    order = heads_first(x, heads) if heads not in (1, size) else False
    if order is None:
        raise UnknownAxesError(
            f"batch and heads share one axis of size {size}, and their order in it is unknown. "
            "Call attention with [batch, heads, tokens, features]"
        )
    return Axes(0, heads, order) if heads > 1 else Axes(None)


def _counted_axes(
    x: Tensor, declared: int | None, tokens: Sequence[int], key: Tensor | None
) -> list[int] | None:
    """Return the axes that may be heads because one head's rows are as many as the layer's tokens.

    Returns:
        Indices of leading axes, none if no count fits; ``None`` if all rows together are the tokens, so that
        there is no axis of heads.
    """
    lead, rows = x.shape[:-2], x.shape[-2]
    total = math.prod(lead)
    # With more than two undeclared axes, the keys of another sequence fit some axis by chance: ignore them.
    keys = key.shape[-2] if key is not None and (declared or len(lead) == 2) else 0
    counted: list[int] = []
    # The outermost module whose token count fits an axis decides: inner modules may process only a part.
    for n in tokens:
        if declared is None and len(lead) == 2 and lead[0] * x.shape[-1] == n != lead[0] * rows:
            break  # the features are as many as the tokens: possibly attention between channels
        if declared in (None, 1) and total * rows == n:
            return None
        fitting = [i for i, size in enumerate(lead) if n in (total // size * rows, total // size * keys)]
        if fitting and (declared is None or any(lead[i] == declared for i in fitting)):
            return fitting
        counted = counted or fitting
    return counted


def _axis_of_groups(lead: Sequence[int], key: Tensor | None, declared: int | None) -> int | None:
    """The one axis of which keys have less than queries: several heads of these share one of those."""
    if key is None or key.dim() != len(lead) + 2:
        return None
    fewer = [(i, n, k) for i, (n, k) in enumerate(zip(lead, key.shape, strict=False)) if n != k]
    if len(fewer) != 1:
        return None
    ((axis, queries, keys),) = fewer
    shared = keys > 0 and queries % keys == 0 and (axis > 0 or keys > 1)  # else one sequence of keys for all
    return axis if shared and declared in (None, queries) else None


def _readings(lead: Sequence[int], declared: int | None, counted: list[int], *, whole: bool) -> list[Axes]:
    """Which axes may be heads, by what is declared and by which leave as many rows as there are tokens."""
    if declared is None:
        return [Axes(i) for i in counted]
    sized = [i for i, n in enumerate(lead) if n == declared]
    if counted:
        sized = [i for i in sized if i in counted]
    pairs = [
        i for i in range(len(lead) - 1) if lead[i] * lead[i + 1] == declared and 1 not in lead[i : i + 2]
    ]
    return [Axes(i) for i in sized] + [Axes(i, groups=True) for i in pairs if whole]


def _heads_in(size: int, rows: int, declared: int | None, tokens: Sequence[int]) -> int:
    """How many heads the first of three axes holds: 1 in [sequences, N, D], H in [sequences · H, N, D]."""
    if declared == 1:
        return 1
    for n in tokens:
        if declared is not None and size % declared == 0 and size * rows == n * declared:
            return declared
        if size * rows == n:
            return 1
        if (
            declared is None
            and 0 < n < size * rows
            and size * rows % n == 0
            and size % (size * rows // n) == 0
        ):
            return size * rows // n
    if declared is not None and not tokens and size % declared == 0:
        return declared
    raise UnknownAxesError(
        f"whether the first of three axes ({size}) holds sequences or their heads cannot be told. Give the "
        "module an attribute `num_heads`, or call attention with [batch, heads, tokens, features]"
    )
