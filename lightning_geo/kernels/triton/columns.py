"""The mass that keys receive: a second pass with keys as rows, which needs no atomics."""

import triton
import triton.language as tl

from lightning_geo.kernels.triton.masks import FLOAT_MASK
from lightning_geo.kernels.triton.places import of_head, place, scoring_of
from lightning_geo.kernels.triton.scores import (
    HIDDEN,
    exponents,
    load_vectors,
    masked_scores,
    multiply,
    sum_classes,
)

__all__ = ["columns_kernel"]

_FLOAT = tl.constexpr(FLOAT_MASK)


@triton.jit
def _add_tile(
    tile, k, received, column, query, rows, scoring, softmax, query_n, query_d, sizes,
    CHECK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DOTS: tl.constexpr,
    RULES: tl.constexpr, CHOSEN: tl.constexpr,
):  # fmt: skip
    """Add the mass that a block of rows gives.

    With CHECK, rows may lie beyond the last one or outside a key's band.
    """
    slot = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = slot < sizes.measured
    if CHECK:
        base = tl.load(softmax + slot, mask=inside, other=-HIDDEN)
        share = tl.load(softmax + sizes.plane + slot, mask=inside, other=0.0)
    else:
        base = tl.load(softmax + slot)
        share = tl.load(softmax + sizes.plane + slot)
    row = slot
    if CHOSEN:
        row = tl.load(rows + slot, mask=inside, other=0).to(tl.int32)
    elif CHECK:
        row = tl.where(inside, slot, 0)
    row64 = row.to(tl.int64)
    # rows that give nothing are not even read: they may hold NaN
    q = load_vectors(query, row64, query_n, query_d, share > 0, DOTS, CHECK=True)
    s = multiply(k, q, tl.zeros([BLOCK_N, BLOCK_M], tl.float32), DOTS)
    index = tl.minimum(column, sizes.keys - 1).to(tl.int64)
    s = masked_scores(
        s,
        s,
        row64,
        row + sizes.offset,
        column,
        index,
        scoring,
        RULES,
        QUERIES=1,
        KEYS=0,
        BAND=CHECK,
        VEILED=False,
    )
    if RULES.a == _FLOAT:  # a float mask may hold NaN for such rows, too
        s = tl.where((share > 0)[None, :], s, HIDDEN)
    e = tl.exp2(exponents(s, base[None, :], scoring.factor, RULES.scaled)) * share[None, :]
    return received + sum_classes(e, BLOCK_N, BLOCK_M)


@triton.jit
def _spans(first, last, sizes, BLOCK_M: tl.constexpr, RULES: tl.constexpr, CHOSEN: tl.constexpr):
    """Find the tiles ``[begin, stop)`` of rows that see any of the keys, and ``[a, b)`` that see all."""
    begin = 0
    stop = sizes.measured
    a = 0
    b = sizes.measured
    if not CHOSEN:
        if RULES.right != 0:
            begin = tl.minimum(tl.maximum(first - sizes.right - sizes.offset, 0), sizes.measured)
            a = tl.minimum(tl.maximum(last - sizes.right - sizes.offset, 0), sizes.measured)
        if RULES.left:
            stop = tl.maximum(tl.minimum(last + sizes.left - sizes.offset + 1, sizes.measured), begin)
            b = tl.maximum(tl.minimum(first + sizes.left - sizes.offset + 1, sizes.measured), 0)
    elif RULES.left or RULES.right != 0:
        b = 0
    begin = begin // BLOCK_M
    stop = tl.cdiv(stop, BLOCK_M)
    a = tl.maximum(tl.minimum(tl.cdiv(a, BLOCK_M), stop), begin)
    b = tl.maximum(tl.minimum(b // BLOCK_M, stop), a)
    return begin, a, b, stop


@triton.jit
def columns_kernel(
    query, key, masks, sizes, scaling, rows, softmax, damaged, received,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DOTS: tl.constexpr, RULES: tl.constexpr,
    CHOSEN: tl.constexpr,
):  # fmt: skip
    """Sum the mass that a block of keys of one head receives, given the softmax of each row."""
    # under causality the first keys have the most rows
    block, flat, head, batch = place(sizes.keys, sizes.heads, BLOCK_N)
    head_query = of_head(query, batch, head)
    head_key = of_head(key, batch, head // sizes.group)
    scoring = scoring_of(batch, head, masks, sizes, scaling)
    softmax += flat.to(tl.int64) * sizes.measured
    rows += batch.to(tl.int64) * sizes.measured

    first = block * BLOCK_N
    last = tl.minimum(first + BLOCK_N, sizes.keys) - 1
    column = first + tl.arange(0, BLOCK_N)
    k = load_vectors(head_key, column.to(tl.int64), key.n, key.d, column < sizes.keys, DOTS, CHECK=True)

    begin, a, b, stop = _spans(first, last, sizes, BLOCK_M, RULES, CHOSEN)
    total = tl.zeros([BLOCK_N, 8], tl.float32)
    for tile in range(a, b):
        total = _add_tile(
            tile, k, total, column, head_query, rows, scoring, softmax, query.n, query.d, sizes, False,
            BLOCK_M, BLOCK_N, DOTS, RULES, CHOSEN,
        )  # fmt: skip
    for step in range((a - begin) + (stop - b)):
        tile = begin + step
        tile = tl.where(tile >= a, tile + (b - a), tile)
        total = _add_tile(
            tile, k, total, column, head_query, rows, scoring, softmax, query.n, query.d, sizes, True,
            BLOCK_M, BLOCK_N, DOTS, RULES, CHOSEN,
        )  # fmt: skip
    mass = tl.sum(total, 1)
    # a NaN here means a NaN key that no live row sees, for otherwise the head is damaged
    mass = tl.where(mass == mass, mass, 0.0)
    broken = tl.load(damaged + flat) != 0
    mass = tl.where(broken, float("nan"), mass)
    tl.store(received + flat.to(tl.int64) * sizes.keys + column, mass, mask=column < sizes.keys)
