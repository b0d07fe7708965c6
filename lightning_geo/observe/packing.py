"""The documents of packed rows, and their tokens as padded batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_geo.observe.spans import Spans
from lightning_geo.utils.device_copy import without_waiting

__all__ = ["Bucket", "Packing", "Portion"]


@dataclass(frozen=True)
class Portion:
    """The part of a packed attention call that one batch of its documents makes up.

    Args:
        numbers: Indices of its documents among those of the whole call, ascending.
        longest: Tokens of the longest document of the whole call.
    """

    numbers: tuple[int, ...]
    longest: int


@dataclass(frozen=True)
class _Places:
    """Places of some documents' tokens.

    Args:
        index: ``[documents, longest]`` int64, token indices over all rows. A shorter document is padded with
            its last token, so that padded entries are finite.
        real: Bool, like ``index``: False in padding; ``None`` if all documents are equally long.
    """

    index: Tensor
    real: Tensor | None

    @classmethod
    def of(cls, spans: Spans, device: torch.device) -> _Places:
        starts = torch.tensor([start for start, _ in spans])
        lengths = torch.tensor([stop - start for start, stop in spans])
        steps = torch.arange(int(lengths.max()))
        index = starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
        equal = bool((lengths == lengths[0]).all())
        real = None if equal else without_waiting(steps < lengths[:, None], device)
        return cls(without_waiting(index, device), real)

    def take(self, x: Tensor) -> Tensor:
        """``[B, N, ...]`` to ``[documents, longest, ...]``."""
        return x[self.index // x.shape[1], self.index % x.shape[1]]

    def take_heads(self, x: Tensor | None) -> Tensor | None:
        """``[B, H, N, D]`` to ``[documents, H, longest, D]``."""
        return None if x is None else self.take(x.transpose(1, 2)).transpose(1, 2)

    def take_mask(self, mask: Tensor | None) -> Tensor | None:
        """``[B, N]`` or ``None`` to ``[documents, longest]``; ``None`` if all tokens are real."""
        taken = None if mask is None else self.take(mask)
        return self.real if taken is None else taken if self.real is None else taken & self.real


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length: at most half of a padded batch of them is padding.

    Args:
        numbers: Their indices among all documents.
        queries: Places of their queries.
        keys: Places of their keys; the same object in self-attention.
    """

    numbers: tuple[int, ...]
    queries: _Places
    keys: _Places


@dataclass
class Packing:
    """The documents of packed rows.

    Args:
        queries: Spans of query tokens, one per document, none of them empty.
        keys: Spans of key tokens of the same documents; the same list in self-attention.
        total: Query tokens of all rows.
        device: Device of the tensors.
    """

    queries: Spans
    keys: Spans
    total: int
    device: torch.device
    _kept: list[Bucket] = field(default_factory=list, repr=False)

    @property
    def buckets(self) -> list[Bucket]:
        """Documents grouped by length, rounded up to a power of two; the first document's group is first."""
        if not self._kept:
            groups: dict[tuple[int, int], list[int]] = {}
            for number, (query, key) in enumerate(zip(self.queries, self.keys, strict=True)):
                sizes = _power_above(query[1] - query[0]), _power_above(key[1] - key[0])
                groups.setdefault(sizes, []).append(number)
            for numbers in groups.values():
                queries = _Places.of([self.queries[n] for n in numbers], self.device)
                same = self.keys is self.queries
                keys = queries if same else _Places.of([self.keys[n] for n in numbers], self.device)
                self._kept.append(Bucket(tuple(numbers), queries, keys))
        return self._kept

    def holds(self, x: Tensor | None) -> bool:
        """Whether ``[B, N, ...]`` has as many tokens as these documents' rows."""
        return x is not None and x.dim() > 1 and x.shape[0] * x.shape[1] == self.total

    def split_hidden(
        self, x: Tensor, mask: Tensor | None = None, *, keys: bool = False
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Divide hidden states ``[B, N, ...]`` and their mask ``[B, N]`` into batches of documents.

        Args:
            x: One vector or more per token.
            mask: True for real tokens; ``None`` if all are real.
            keys: Whether they are tokens of the keys, in cross-attention.
        """
        places = [bucket.keys if keys else bucket.queries for bucket in self.buckets]
        return [(p.take(x), p.take_mask(mask)) for p in places]


def _power_above(length: int) -> int:
    return (length - 1).bit_length()
