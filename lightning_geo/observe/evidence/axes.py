"""Finds the axis of heads, by the heads that modules declare and by the number of tokens."""

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
    """The axis of heads is unknown."""


def config_of(module: nn.Module) -> Any:
    """Return a module's ``config``; None if it has none, or its ``config`` property raises."""
    try:
        return getattr(module, "config", None)
    except Exception:
        return None


def declared_heads(module: nn.Module) -> int | None:
    """Return the number of heads that a module declares in an attribute of its own or of its config."""
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
    """Maps the leading axes of an attention's tensors to batch and heads.

    Args:
        heads: Index of the axis of heads among the leading axes; None for a single head without an axis.
        folded: Number of heads if the first axis holds batch and heads together; else 0.
        heads_first: Whether heads vary slower than sequences in that axis.
        groups: Whether heads are two axes, groups and the heads of each; ``heads`` is then that of groups.
    """

    heads: int | None
    folded: int = 0
    heads_first: bool = False
    groups: bool = False

    def is_next_to_features(self, x: Tensor) -> bool:
        """Whether the last axis of heads is next to the features in memory, as a projection writes it."""
        assert self.heads is not None
        last = self.heads + self.groups
        return x.shape[last] > 1 and x.stride(last) == x.shape[-1] * x.stride(-1)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [*lead, rows, columns] to [B, H, rows, columns]; grouped key heads stay fewer."""
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
        """Map keys or values likewise; with grouped heads, their folded axis holds fewer heads."""
        if not self.folded or x.dim() != 3:
            return self(x)
        batch = queries.shape[0] // self.folded
        if x.shape[0] % batch or self.folded % (x.shape[0] // batch):
            raise UnknownAxesError(
                f"the first axis of the keys, of size {x.shape[0]}, does not fit a batch of {batch} with "
                f"{self.folded} query heads. "
                "Call attention with [batch, heads, tokens, features]"
            )
        return self._unfolded(x, batch)

    def _unfolded(self, x: Tensor, batch: int) -> Tensor:
        split: Tensor = x.unflatten(0, (-1, batch) if self.heads_first else (batch, -1))
        return split.transpose(0, 1) if self.heads_first else split

    def mask(self, mask: Tensor, lead: Sequence[int]) -> Tensor:
        """Map a mask broadcastable over axes ``lead`` to [B or 1, H or 1, Nq or 1, Nk or 1]."""
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
    """Find the axis of heads in queries (or probabilities) ``[*lead, queries, columns]``.

    Evidence counts in this order: the heads that the module declares, as far as sizes allow; the number of
    tokens in the layer's input, which equals the number of rows of one head; the memory layout, in which a
    projection puts each head next to its features; and PyTorch's convention [B, H, N, D] for four axes.

    Args:
        x: Queries of the attention.
        declared: Number of heads that the module declares; None if it declares none.
        tokens: Token counts of the inputs of modules around the call, those of its layer first, from outside
            in.
        heads_first: Returns whether heads vary slower than sequences in an axis that holds both; None if
            unknown.
        key: Keys of the attention. If queries are pooled, the keys are the layer's tokens; if heads are
            grouped, keys have fewer heads.

    Raises:
        UnknownAxesError: If no evidence decides.

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
    """Return the only axis on which keys are fewer than queries, so that query heads share key heads."""
    if key is None or key.dim() != len(lead) + 2:
        return None
    fewer = [(i, n, k) for i, (n, k) in enumerate(zip(lead, key.shape, strict=False)) if n != k]
    if len(fewer) != 1:
        return None
    ((axis, queries, keys),) = fewer
    shared = (
        keys > 0 and queries % keys == 0 and (axis > 0 or keys > 1)
    )  # otherwise all sequences share one sequence of keys
    return axis if shared and declared in (None, queries) else None


def _readings(lead: Sequence[int], declared: int | None, counted: list[int], *, whole: bool) -> list[Axes]:
    """Return candidate layouts whose head axis fits the declared heads and the counted tokens."""
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
    """Count the heads in the first of three axes: 1 in [sequences, N, D], H in [sequences · H, N, D]."""
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
        f"cannot tell whether the first of three axes, of size {size}, holds sequences or their heads. Give "
        "the module a `num_heads` attribute, or call attention with [batch, heads, tokens, features]"
    )
