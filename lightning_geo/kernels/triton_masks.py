"""Masks and bands inside Triton kernels, and the kernel that needs nothing else: which keys are visible."""

import triton
import triton.language as tl

from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.triton import HIDDEN_SCORE

__all__ = [
    "BOOL_MASK",
    "CAUSAL",
    "FLOAT_MASK",
    "HIDDEN",
    "apply_key_row",
    "apply_mask",
    "in_band",
    "visibility_kernel",
]

#: Score of a hidden key: finite, so that no inf - inf arises, and a power of two, so that a product with
#: it is exact: a fused multiply-add must find it equal to itself.
HIDDEN = tl.constexpr(HIDDEN_SCORE)

#: The kinds of a mask slot; 0 is an empty one.
BOOL_MASK = tl.constexpr(1)
FLOAT_MASK = tl.constexpr(2)

#: A right side that ends at the row's own position; 0 is an open one, 1 any other.
CAUSAL = tl.constexpr(2)

_HIDDEN_BELOW = tl.constexpr(HIDDEN_BELOW)


@triton.jit
def apply_key_row(scores, values, KIND: tl.constexpr):
    """Apply what is the same for all rows: ``values`` broadcast to scores, ``HIDDEN`` for a hidden key."""
    if KIND == 1:
        scores = tl.where(values == HIDDEN, HIDDEN, scores)
    elif KIND == 2:
        scores = tl.where(values == HIDDEN, HIDDEN, scores + values)
    return scores


@triton.jit
def apply_mask(
    scores,
    mask,
    rows,
    columns,
    stride_row,
    stride_column,
    KIND: tl.constexpr,
    PER_ROW: tl.constexpr,
    GUARD: tl.constexpr,
):
    """Add a mask to scores; ``rows`` and ``columns`` are valid int64 indices that broadcast to them.

    With ``GUARD`` scores may be hidden already and stay so, whatever the mask holds.
    """
    if KIND != 0:
        offsets = columns * stride_column
        if PER_ROW:
            offsets = offsets + rows * stride_row
        values = tl.load(mask + offsets)
        if KIND == 1:
            scores = tl.where(values != 0, scores, HIDDEN)
        else:
            values = values.to(tl.float32)
            # a NaN hides nothing: it is to be seen in the row's statistics
            hidden = values <= _HIDDEN_BELOW
            if GUARD:
                hidden = hidden | (scores == HIDDEN)
            scores = tl.where(hidden, HIDDEN, scores + values)
    return scores


@triton.jit
def in_band(positions, columns, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Which columns causality and window leave to which positions; only where one of the two is on."""
    if LEFT and RIGHT:
        return (columns >= positions - left) & (columns <= positions + right)
    elif LEFT:
        return columns >= positions - left
    else:
        return columns <= positions + right


@triton.jit
def visibility_kernel(
    query_mask,
    key_row,
    mask_a,
    mask_b,
    counts,
    first,
    row_b,
    row_h,
    a_b,
    a_h,
    a_q,
    a_k,
    b_b,
    b_h,
    b_q,
    b_k,
    heads,
    rows,
    queries,
    keys,
    offset,
    left,
    right,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    QUERY_MASK: tl.constexpr,
    KEY_ROW: tl.constexpr,
    MASK_A: tl.constexpr,
    MASK_A_ROWS: tl.constexpr,
    MASK_B: tl.constexpr,
    MASK_B_ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Count each row's visible keys and find each sequence's first one.

    ``counts`` is float32 ``[B, heads, rows]``, ``first`` int32 ``[B]`` and holds Nk at first. ``heads`` is 1
    where the masks do not tell heads apart, ``rows`` 1 where nothing tells rows apart.
    """
    blocks = tl.cdiv(rows, BLOCK_M)
    pid = tl.program_id(0)
    block = pid % blocks
    head = (pid // blocks) % heads
    batch = (pid // blocks) // heads
    key_row += batch.to(tl.int64) * row_b + head.to(tl.int64) * row_h
    mask_a += batch.to(tl.int64) * a_b + head.to(tl.int64) * a_h
    mask_b += batch.to(tl.int64) * b_b + head.to(tl.int64) * b_h
    query_mask += batch.to(tl.int64) * queries

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < rows
    row = tl.where(inside, row, 0)
    live = inside
    if QUERY_MASK and FIRST:
        if rows == queries:
            live = live & (tl.load(query_mask + row) != 0)
        else:  # the one row stands for all: it is live if any is
            found = tl.zeros([BLOCK_N], tl.int32)
            for start in range(0, queries, BLOCK_N):
                index = start + tl.arange(0, BLOCK_N)
                found = tl.maximum(
                    found, tl.load(query_mask + index, mask=index < queries, other=0).to(tl.int32)
                )
            live = live & (tl.max(found, 0) != 0)

    position = (row + offset)[:, None]
    count = tl.zeros([BLOCK_M], tl.float32)
    earliest = tl.zeros([BLOCK_M], tl.int32) + keys
    for start in range(0, keys, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        safe = tl.minimum(column, keys - 1)[None, :].to(tl.int64)
        scores = tl.where((column < keys)[None, :], tl.zeros([BLOCK_M, BLOCK_N], tl.float32), HIDDEN)
        if LEFT or RIGHT:
            scores = tl.where(in_band(position, column[None, :], left, right, LEFT, RIGHT), scores, HIDDEN)
        if KEY_ROW != 0:
            scores = apply_key_row(scores, tl.load(key_row + safe), 1)
        index = row[:, None].to(tl.int64)
        scores = apply_mask(scores, mask_a, index, safe, a_q, a_k, MASK_A, MASK_A_ROWS, GUARD=True)
        scores = apply_mask(scores, mask_b, index, safe, b_q, b_k, MASK_B, MASK_B_ROWS, GUARD=True)
        visible = scores != HIDDEN
        if COUNT:
            count += tl.sum(visible.to(tl.float32), 1)
        if FIRST:
            candidate = visible & live[:, None]
            if QUERY_MASK:  # noqa: SIM102 (one is known to the compiler, the other is not)
                if queries == keys:
                    candidate = candidate & (tl.load(query_mask + safe) != 0)
            found = tl.where(candidate, column[None, :], keys)
            earliest = tl.minimum(earliest, tl.min(found, 1))
    if COUNT:
        tl.store(counts + (batch * heads + head).to(tl.int64) * rows + row, count, mask=inside)
    if FIRST:
        tl.atomic_min(first + batch, tl.min(earliest, 0))
