"""Divide attention calls of packed rows into the calls that each document would make alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.kernels import BlockRule
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.packing import Bucket, Portion

__all__ = ["by_document"]


def by_document(call: AttentionCall) -> list[AttentionCall]:
    """Return the calls that documents would make alone, in batches of similar length.

    Args:
        call: Any call; if every row is one sequence, it is returned unchanged.

    Returns:
        Each with query, key, value and output ``[documents, H, longest, D]`` and a ``query_mask``.
    """
    packing = call.documents
    if packing is None:
        return [call]
    longest = max(stop - start for start, stop in packing.queries)
    # With unequal numbers of queries and keys, queries have no position among the keys.
    equal = all(q[1] - q[0] == k[1] - k[0] for q, k in zip(packing.queries, packing.keys, strict=True))
    call = call if equal else replace(call, cross=True, offset=None)
    return [_part(call, bucket, longest) for bucket in packing.buckets]


def _part(call: AttentionCall, bucket: Bucket, longest: int) -> AttentionCall:
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
        ids=None if call.ids is None else keys.take(call.ids),
        has_padding_mask=False,
        padding=None,
        inputs=inputs,
        cumulative=None,
        restarts=None,
        documents=None,
        portion=Portion(bucket.numbers, longest),
    )


def _pairs(mask: Any, call: AttentionCall, bucket: Bucket) -> Any:
    """Take the entries of a mask (or of scores) for the query-key pairs within documents."""
    _, rows, columns = call.lengths
    query, key = bucket.queries.index, bucket.keys.index
    sequence, query, key = query[:, 0] // rows, query % rows, key % columns
    if isinstance(mask, BlockMask):
        return _block_pairs(mask, sequence, query, key)
    mask = mask[(None,) * (4 - mask.dim())]
    sequence = sequence if mask.shape[0] > 1 else torch.zeros_like(sequence)
    query = query if mask.shape[2] > 1 else torch.zeros_like(query[:, :1])
    key = key if mask.shape[3] > 1 else torch.zeros_like(key[:, :1])
    if mask.stride(1) == 0:  # the same for all heads: copy it once
        mask = mask[:, :1]
    return mask[sequence[:, None, None], :, query[:, :, None], key[:, None, :]].permute(0, 3, 1, 2)


def _block_pairs(mask: BlockMask, sequence: Tensor, query: Tensor, key: Tensor) -> BlockMask:
    """Apply a block mask's rule, skipped blocks included, to the documents' positions."""
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
