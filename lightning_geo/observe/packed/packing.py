"""Attention and hidden states of packed rows, taken apart into padded batches of documents."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.observe.packed.spans import Spans

if TYPE_CHECKING:
    from lightning_geo.observe.call import AttentionCall

__all__ = ["Packing", "Portion"]


@dataclass(frozen=True)
class Portion:
    """Which part of a packed attention call a batch of documents is.

    Args:
        numbers: Places of its documents among those of the whole call, ascending.
        longest: Tokens of the longest document of the whole call.
    """

    numbers: tuple[int, ...]
    longest: int


@dataclass(frozen=True)
class _Places:
    """Where the tokens of some documents are.

    Args:
        index: ``[documents, longest]`` int64, token indices over all rows; behind a shorter document its
            last token comes again, so that what is there is finite.
        real: Bool, like ``index``: False behind the document's end; ``None`` where all are equally long.
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
        real = None if equal else (steps < lengths[:, None]).to(device, non_blocking=True)
        return cls(index.to(device, non_blocking=True), real)

    def take(self, x: Tensor) -> Tensor:
        """``[B, N, ...]`` to ``[documents, longest, ...]``."""
        return x[self.index // x.shape[1], self.index % x.shape[1]]

    def take_heads(self, x: Tensor | None) -> Tensor | None:
        """``[B, H, N, D]`` to ``[documents, H, longest, D]``."""
        return None if x is None else self.take(x.transpose(1, 2)).transpose(1, 2)

    def take_mask(self, mask: Tensor | None) -> Tensor | None:
        """``[B, N]`` or ``None`` to ``[documents, longest]``; ``None`` where all tokens are real."""
        taken = None if mask is None else self.take(mask)
        return self.real if taken is None else taken if self.real is None else taken & self.real


@dataclass(frozen=True)
class _Bucket:
    """Documents of similar length: at most half of a padded batch of them is padding.

    Args:
        numbers: Their places among all documents.
        queries: Where their queries are.
        keys: Where their keys are; the same object in self-attention.
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
        device: Where the tensors are.
    """

    queries: Spans
    keys: Spans
    total: int
    device: torch.device
    _kept: list[_Bucket] = field(default_factory=list, repr=False)

    @property
    def _buckets(self) -> list[_Bucket]:
        """Documents whose lengths have the same power of two above; that of the first document first."""
        if not self._kept:
            groups: dict[tuple[int, int], list[int]] = {}
            for number, (query, key) in enumerate(zip(self.queries, self.keys, strict=True)):
                sizes = _power_above(query[1] - query[0]), _power_above(key[1] - key[0])
                groups.setdefault(sizes, []).append(number)
            for numbers in groups.values():
                queries = _Places.of([self.queries[n] for n in numbers], self.device)
                same = self.keys is self.queries
                keys = queries if same else _Places.of([self.keys[n] for n in numbers], self.device)
                self._kept.append(_Bucket(tuple(numbers), queries, keys))
        return self._kept

    def split(self, call: AttentionCall) -> list[AttentionCall]:
        """Calls as the documents would have made them alone, in batches of similar length.

        Args:
            call: The packed call.

        Returns:
            Each with query, key, value and output ``[documents, H, longest, D]`` and a ``query_mask``.
        """
        longest = max(stop - start for start, stop in self.queries)
        # with keys of other lengths no query has a position among them
        equal = all(q[1] - q[0] == k[1] - k[0] for q, k in zip(self.queries, self.keys, strict=True))
        call = call if equal else replace(call, cross=True, offset=None)
        return [_part(call, bucket, longest) for bucket in self._buckets]

    def holds(self, x: Tensor | None) -> bool:
        """Whether ``[B, N, ...]`` are the tokens that these documents are made of."""
        return x is not None and x.dim() > 1 and x.shape[0] * x.shape[1] == self.total

    def split_hidden(
        self, x: Tensor, mask: Tensor | None = None, *, keys: bool = False
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Hidden states ``[B, N, ...]`` and their mask ``[B, N]`` in batches of documents.

        Args:
            x: One vector or more per token.
            mask: True = real token; ``None`` if all are.
            keys: Whether they are the tokens of keys, in cross-attention.
        """
        places = [bucket.keys if keys else bucket.queries for bucket in self._buckets]
        return [(p.take(x), p.take_mask(mask)) for p in places]


def _power_above(length: int) -> int:
    return (length - 1).bit_length()


def _part(call: AttentionCall, bucket: _Bucket, longest: int) -> AttentionCall:
    queries, keys = bucket.queries, bucket.keys
    masks = [_pairs(mask, call, bucket) for mask in call.masks]
    scores = None if call.scores is None else _pairs(call.scores, call, bucket)
    if keys.real is not None:
        visible = keys.real[:, None, None, :]
        masks.append(visible)
        scores = None if scores is None else scores.masked_fill(~visible, -torch.inf)
    inputs = call.inputs
    if inputs is not None:
        inputs = {role: (queries if role == "query" else keys).take(x) for role, x in inputs.items()}
    return replace(
        call,
        query=queries.take_heads(call.query),
        key=keys.take_heads(call.key),
        value=keys.take_heads(call.value),
        output=queries.take_heads(call.output),
        masks=tuple(masks),
        scores=scores,
        query_mask=queries.take_mask(call.query_mask),
        key_mask=keys.take_mask(call.key_mask),
        special=None if call.special is None else keys.take(call.special),
        inputs=inputs,
        cumulative=None,
        restarts=None,
        documents=None,
        portion=Portion(bucket.numbers, longest),
    )


def _pairs(mask: Any, call: AttentionCall, bucket: _Bucket) -> Any:
    """What a mask (or the scores) says of the pairs within documents."""
    _, rows, columns = call.lengths
    query, key = bucket.queries.index, bucket.keys.index
    sequence, query, key = query[:, 0] // rows, query % rows, key % columns
    if isinstance(mask, BlockMask):
        return _block_pairs(mask, sequence, query, key)
    mask = mask[(None,) * (4 - mask.dim())]
    sequence = sequence if mask.shape[0] > 1 else torch.zeros_like(sequence)
    query = query if mask.shape[2] > 1 else torch.zeros_like(query[:, :1])
    key = key if mask.shape[3] > 1 else torch.zeros_like(key[:, :1])
    if mask.stride(1) == 0:  # one for all heads: taken once
        mask = mask[:, :1]
    return mask[sequence[:, None, None], :, query[:, :, None], key[:, None, :]].permute(0, 3, 1, 2)


def _block_pairs(mask: BlockMask, sequence: Tensor, query: Tensor, key: Tensor) -> BlockMask:
    """The same rule on other positions; whether the kernel skips a block is part of it."""
    from lightning_geo.kernels import BlockRule

    rule = BlockRule.of(mask)
    if rule.blocks.shape[0] == 1:
        sequence = torch.zeros_like(sequence)
    rows, columns = rule.block_size

    def within(document: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        b, q, k = sequence[document], query[document, i], key[document, j]
        return rule.blocks[b, head, q // rows, k // columns] & rule.mask_mod(b, head, q, k)

    heads, size = rule.blocks.shape[1], mask.BLOCK_SIZE
    blocks = [-(-n // block) for n, block in zip((query.shape[1], key.shape[1]), size, strict=True)]
    shape = (len(sequence), heads, blocks[0])
    counts = torch.full(shape, blocks[1], dtype=torch.int32, device=query.device)
    indices = torch.arange(blocks[1], dtype=torch.int32, device=query.device).expand(*shape, -1)
    lengths = query.shape[1], key.shape[1]
    return BlockMask.from_kv_blocks(
        counts, indices.contiguous(), BLOCK_SIZE=size, mask_mod=within, seq_lengths=lengths
    )
