"""Which axis is heads: from what modules declare, and from how many tokens there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Axes", "UnknownAxesError", "config_of", "declared_heads", "find_axes"]

_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "nheads", "heads", "num_head",
          "attention_heads", "encoder_attention_heads", "decoder_attention_heads")  # fmt: skip


class UnknownAxesError(LookupError):
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
    """

    heads: int | None
    folded: int = 0
    heads_first: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """[*lead, rows, columns] to [B, H, rows, columns]; fewer heads than queries have stay fewer."""
        if x.dim() == 2:
            return x[None, None]
        if self.folded:
            return self._unfolded(x, x.shape[0] // self.folded)
        if self.heads is None:
            return x.flatten(0, -3).unsqueeze(1)
        x = x.movedim(self.heads, -3)
        return x if x.dim() == 4 else x.flatten(0, -4) if x.dim() > 4 else x[None]

    def grouped(self, x: Tensor, queries: Tensor) -> Tensor:
        """The same for keys and values, whose folded axis holds fewer heads where heads are grouped."""
        if not self.folded or x.dim() != 3:
            return self(x)
        batch = queries.shape[0] // self.folded
        if x.shape[0] % batch or self.folded % (x.shape[0] // batch):
            raise UnknownAxesError("the keys' heads and batch are one axis that fits neither")
        return self._unfolded(x, batch)

    def _unfolded(self, x: Tensor, batch: int) -> Tensor:
        return (
            x.unflatten(0, (-1, batch)).transpose(0, 1) if self.heads_first else x.unflatten(0, (batch, -1))
        )

    def mask(self, mask: Tensor, lead: Sequence[int]) -> Tensor:
        """A mask that broadcasts over the leading axes ``lead``, to [B or 1, H or 1, Nq or 1, Nk or 1]."""
        if mask.dim() < 2:
            mask = mask.reshape((1,) * (2 - mask.dim()) + tuple(mask.shape))
        mask = mask[(None,) * (len(lead) + 2 - mask.dim())]
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
) -> Axes:
    """Tell heads from batch in queries (or probabilities) ``[*lead, queries, columns]``.

    A module that declares its heads decides, as far as sizes allow. The number of tokens in the layer's input
    decides what it leaves open: one head's rows are as many as these. What both leave open is decided by
    memory, where heads that a projection made lie next to their features, and by PyTorch's convention
    [B, H, N, D] for four axes, in this order.

    Args:
        x: What attention was given for queries.
        declared: Heads that the module declares; None if it does not.
        tokens: How many tokens the modules that enclose the call were given.
        heads_first: Tells whether heads vary slower than sequences where both are the first of three axes.

    Raises:
        UnknownAxesError: If nothing decides.

    Example:
        >>> import torch
        >>> find_axes(torch.zeros(2, 3, 5, 8), declared=3, tokens=[10])
        Axes(heads=1, folded=0, heads_first=False)
    """
    lead, rows = x.shape[:-2], x.shape[-2]
    if not lead:
        return Axes(None)
    if len(lead) == 1:
        heads = _heads_in(lead[0], rows, declared, tokens)
        order = heads_first(x, heads) if heads not in (1, lead[0]) else False
        if order is None:
            raise UnknownAxesError(
                f"batch and heads are one axis of {lead[0]}, and which of them comes first cannot be told. "
                "Call attention with [batch, heads, tokens, features]"
            )
        return Axes(0, heads, order) if heads > 1 else Axes(None)
    total = math.prod(lead)
    # where one head's rows are the tokens, there is no axis of heads
    if declared in (None, 1) and any(total * rows == n for n in tokens):
        return Axes(None)
    sized = [i for i, n in enumerate(lead) if n == declared]
    counted = [i for i, n in enumerate(lead) if any(total // n * rows == t for t in tokens)]
    both = [i for i in sized if i in counted]
    if both and declared == 1:
        return Axes(None)
    candidates = both or (counted if declared is None else [] if counted else sized)
    if len(candidates) > 1:
        near = [i for i in candidates if lead[i] > 1 and x.stride(i) == x.shape[-1] * x.stride(-1)]
        candidates = near if len(near) == 1 else [1] if len(lead) == 2 else []
    if len(candidates) == 1:
        return Axes(candidates[0])
    if declared == 1 and not counted:
        return Axes(None)
    if len(lead) == 2 and not sized and (declared is None or not tokens or 1 in counted):
        return Axes(1)
    said = "declares none" if declared is None else f"declares {declared}"
    raise UnknownAxesError(
        f"which axis of {list(x.shape)} is heads cannot be told: the module {said}. Give it an attribute "
        "`num_heads`, or call attention with [batch, heads, tokens, features]"
    )


def _heads_in(size: int, rows: int, declared: int | None, tokens: Sequence[int]) -> int:
    """How many heads the first of three axes holds: 1 in [sequences, N, D], H in [sequences · H, N, D]."""
    heads = declared or 1
    if heads > 1 and size % heads == 0 and any(size * rows == n * heads for n in tokens):
        return heads
    if declared == 1 or any(size * rows == n for n in tokens):
        return 1
    if declared is None:
        folded = {size * rows // n for n in tokens if n and size * rows % n == 0 and size * rows > n}
        if len(folded) == 1 and size % (heads := folded.pop()) == 0:
            return heads
    elif not tokens and size % declared == 0:
        return declared
    raise UnknownAxesError(
        f"whether the first of three axes ({size}) holds sequences or their heads cannot be told. Give the "
        "module an attribute `num_heads`, or call attention with [batch, heads, tokens, features]"
    )
