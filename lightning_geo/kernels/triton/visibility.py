"""Visible keys: their number in each row, and the first one of each sequence."""

import triton
import triton.language as tl

from lightning_geo.kernels.triton.scores import HIDDEN, Scoring, apply_key_row, apply_mask, in_band

__all__ = ["visibility_kernel"]


@triton.jit
def visibility_kernel(
    query_mask, key_row, row_b, row_h, mask_a, a_b, a_h, a_q, a_k, mask_b, b_b, b_h, b_q, b_k,
    counts, first, heads, queries, keys, offset, left, right,
    RULES: tl.constexpr, QUERY_MASK: tl.constexpr, COUNT: tl.constexpr, FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Count each row's visible keys and find each sequence's first one.

    ``counts`` is float32 ``[B, heads, Nq]``, ``first`` int32 ``[B]`` and holds Nk at first. ``heads`` is 1
    where all heads share their masks. For masks that differ between rows alone: else, formulas do.
    """
    blocks = tl.cdiv(queries, BLOCK_M)
    pid = tl.program_id(0)
    block = pid % blocks
    head = (pid // blocks) % heads
    batch = (pid // blocks) // heads
    key_row += batch.to(tl.int64) * row_b + head.to(tl.int64) * row_h
    mask_a += batch.to(tl.int64) * a_b + head.to(tl.int64) * a_h
    mask_b += batch.to(tl.int64) * b_b + head.to(tl.int64) * b_h
    query_mask += batch.to(tl.int64) * queries
    # no scores are computed here, so scale, cap and factor do not matter
    scoring = Scoring(key_row, mask_a, a_q, a_k, mask_b, b_q, b_k, left, right, 1.0, 1.0, 1.0)

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < queries
    row = tl.where(inside, row, 0)
    live = inside
    if QUERY_MASK and FIRST:
        live = live & (tl.load(query_mask + row) != 0)

    position = (row + offset)[:, None]
    count = tl.zeros([BLOCK_M], tl.float32)
    earliest = tl.zeros([BLOCK_M], tl.int32) + keys
    for start in range(0, keys, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        safe = tl.minimum(column, keys - 1)[None, :].to(tl.int64)
        scores = tl.where((column < keys)[None, :], tl.zeros([BLOCK_M, BLOCK_N], tl.float32), HIDDEN)
        if RULES.left or RULES.right != 0:
            scores = tl.where(in_band(position, column[None, :], scoring, RULES), scores, HIDDEN)
        if RULES.key_row != 0:
            scores = apply_key_row(scores, tl.load(key_row + safe), 1)
        index = row[:, None].to(tl.int64)
        scores = apply_mask(scores, mask_a, index, safe, a_q, a_k, RULES.a, RULES.a_rows, GUARD=True)
        scores = apply_mask(scores, mask_b, index, safe, b_q, b_k, RULES.b, RULES.b_rows, GUARD=True)
        visible = scores != HIDDEN
        if COUNT:
            count += tl.sum(visible.to(tl.float32), 1)
        if FIRST:
            seen = visible & live[:, None]
            if QUERY_MASK:  # noqa: SIM102 (one is known to the compiler, the other is not)
                if queries == keys:
                    seen = seen & (tl.load(query_mask + safe) != 0)
            candidates = tl.where(seen, column[None, :], keys)
            earliest = tl.minimum(earliest, tl.min(candidates, 1))
    if COUNT:
        tl.store(counts + (batch * heads + head).to(tl.int64) * queries + row, count, mask=inside)
    if FIRST:
        tl.atomic_min(first + batch, tl.min(earliest, 0))
