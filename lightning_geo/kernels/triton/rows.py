"""One pass over the keys with queries as rows: every statistic but the mass that keys receive.

The softmax is taken in base 2 and centred: with s the scores, c = log2(e), m the peak so far and
t = c (s - m), a row's state is l = sum 2^t, moment = -sum 2^t t and so on, and entropy =
ln 2 (log2 l + moment / l) keeps its digits at any offset of the scores. Where nothing but bool masks and
bands touches the dot products, s is the bare product, c holds the scale, and t is one fused multiply-add
c s - (c m): it rounds once, after the difference, and the rounding of c m shifts all of a row alike. That
holds while c m < 2^31; rows beyond, which float32 cannot resolve anyway, come out as NaN.

Each state is held per row and column class, the column modulo 8: so tensor cores spread their results over
threads, and sums over a tile stay within a thread. They cross threads once, at the end, and leave this kernel
as they are: tensor cores have four threads hold the same row, so that the finish kernel, with a row to each,
makes statistics of them at a quarter of the instructions.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lightning_geo.kernels.triton.masks import CAUSAL
from lightning_geo.kernels.triton.places import Keys, of_head, place, read_rows, scoring_of
from lightning_geo.kernels.triton.scores import (
    BOOL,
    HIDDEN,
    base_of,
    exponents,
    load_vectors,
    masked_scores,
    multiply,
    sum_classes,
)
from lightning_geo.kernels.triton.spans import spans_of

__all__ = ["rows_kernel"]

_CAUSAL = tl.constexpr(CAUSAL)


class _State(NamedTuple):
    """The softmax of a block of rows so far: its peak ``[M]``, and sums over the keys ``[M, 8]``.

    With e = 2^t: Σe, -Σet, Σe², Σe before and after the row, Σe |j - i|, and Σe of special tokens.
    """

    peak: Any
    total: Any
    moment: Any
    squares: Any
    before: Any
    after: Any
    distance: Any
    marked: Any


@triton.jit
def _sum_ahead(values, mass, reach, M: tl.constexpr, N: tl.constexpr):
    """Sum [M, N] times (column - reach) likewise; the column is 8 times a constant, plus its class."""
    steps = (tl.arange(0, N // 8) * 8).to(tl.float32)[None, :, None]
    classes = tl.arange(0, 8).to(tl.float32)[None, :]
    return tl.sum(tl.reshape(values, [M, N // 8, 8]) * steps, 1) + (classes - reach[:, None]) * mass


@triton.jit
def _tile_scores(
    start, q, rows, keys, scoring, KIND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr, DOTS: tl.constexpr, RULES: tl.constexpr,
):  # fmt: skip
    """Score the keys from ``start`` on, ``HIDDEN`` where anything hides one."""
    inner = tl.arange(0, BLOCK_N)
    column = start + inner
    k = load_vectors(
        keys.pointer + start.to(tl.int64) * keys.stride_n, inner.to(tl.int64), keys.stride_n, keys.stride_d,
        column < keys.count, DOTS, CHECK=KIND == 0 and TAIL,
    )  # fmt: skip
    index = tl.minimum(column, keys.count - 1) if KIND == 0 and TAIL else column
    # A dense mask of flags enters as the product's accumulator: so it takes the layout of the product. The
    # other way round, every sum over the tile would be shuffled across threads.
    VEILED: tl.constexpr = RULES.a == BOOL and RULES.a_rows
    if VEILED:
        flags = (
            scoring.mask_a + (rows.index * scoring.a_q)[:, None] + (index.to(tl.int64) * scoring.a_k)[None, :]
        )
        veil = tl.where(tl.load(flags) != 0, 0.0, HIDDEN)
    else:
        veil = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    s = multiply(q, k, veil, DOTS)
    s = masked_scores(
        s, veil, rows.index, rows.position, column, index.to(tl.int64), scoring, RULES,
        QUERIES=0, KEYS=1, BAND=KIND == 0, VEILED=VEILED,
    )  # fmt: skip
    if KIND == 0 and TAIL and RULES.key_row == 0:
        s = tl.where((column < keys.count)[None, :], s, HIDDEN)
    return s


@triton.jit
def _add_tile(
    state, start, s, rows, special, scoring, KIND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    RULES: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Take the scores of one tile into the state."""
    inner = tl.arange(0, BLOCK_N)
    new = tl.maximum(state.peak, tl.max(s, 1))
    base = base_of(new, scoring.factor, RULES.scaled)
    shift = base_of(state.peak, scoring.factor, RULES.scaled) - base
    if RULES.scaled:
        shift *= scoring.factor
    decay = tl.exp2(shift)[:, None]
    t = exponents(s, base[:, None], scoring.factor, RULES.scaled)
    e = tl.exp2(t)

    mass = sum_classes(e, BLOCK_M, BLOCK_N)
    moment = decay * (state.moment - shift[:, None] * state.total) - sum_classes(e * t, BLOCK_M, BLOCK_N)
    total = decay * state.total + mass
    squares = state.squares
    before = state.before
    after = state.after
    distance = state.distance
    marked = state.marked
    if SUMS.squares >= 0:
        squares = decay * decay * squares + sum_classes(e * e, BLOCK_M, BLOCK_N)
    if SUMS.placed:
        reach = (rows.position - start).to(tl.float32)
        ahead = inner.to(tl.float32)[None, :] - reach[:, None]
    if SUMS.before >= 0:
        before = decay * before
        if KIND < 0:
            before += mass
        elif KIND == 0:
            before += sum_classes(tl.where(ahead < 0, e, 0.0), BLOCK_M, BLOCK_N)
    if SUMS.after >= 0:
        after = decay * after
        if KIND > 0:
            after += mass
        elif KIND == 0:
            after += sum_classes(tl.where(ahead > 0, e, 0.0), BLOCK_M, BLOCK_N)
    if SUMS.distance >= 0:
        if KIND == 0:
            distance = decay * distance + sum_classes(e * tl.abs(ahead), BLOCK_M, BLOCK_N)
        else:
            signed = _sum_ahead(e, mass, reach, BLOCK_M, BLOCK_N)
            distance = decay * distance + (signed if KIND > 0 else -signed)
    if SUMS.marked >= 0:
        # offsets are added first: two additions to the pointer took 79 more registers with a dense mask
        weight = tl.load(special + (start + inner))[None, :]
        marked = decay * marked + sum_classes(e * weight, BLOCK_M, BLOCK_N)
    return _State(new, total, moment, squares, before, after, distance, marked)


@triton.jit
def _add_tiles(
    state, spans, q, rows, keys, special, scoring, KIND: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL: tl.constexpr, DOTS: tl.constexpr, RULES: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Take all tiles of one KIND into the state: wholly before (-1) or after (1) all rows, or any other (0).

    Those of kind -1 and 1 are visible to all rows as far as band and tail go.
    """
    if KIND < 0:
        first = spans.a
        stop = spans.b
    elif KIND == 0:
        first = spans.begin
        stop = spans.stop - (spans.b - spans.a) - (spans.d - spans.c)
    elif SUMS.placed and RULES.right != _CAUSAL:
        first = spans.c
        stop = spans.d
    else:
        first = 0
        stop = 0
    for step in range(first, stop):
        tile = step
        if KIND == 0:
            tile = tl.where(tile >= spans.a, tile + (spans.b - spans.a), tile)
            tile = tl.where(tile >= spans.c, tile + (spans.d - spans.c), tile)
        start = tile * BLOCK_N
        s = _tile_scores(start, q, rows, keys, scoring, KIND, BLOCK_M, BLOCK_N, TAIL, DOTS, RULES)
        state = _add_tile(state, start, s, rows, special, scoring, KIND, BLOCK_M, BLOCK_N, RULES, SUMS)
    return state


@triton.jit
def _store(sums, plane, inside, values, INDEX: tl.constexpr):
    """Store a number per row; nothing for an INDEX of -1."""
    if INDEX >= 0:
        tl.store(sums + tl.full([], INDEX, tl.int64) * plane, values, mask=inside)


@triton.jit
def rows_kernel(
    query, key, masks, sizes, scaling, rows, query_mask, special, sums,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TAIL: tl.constexpr, DOTS: tl.constexpr,
    RULES: tl.constexpr, SUMS: tl.constexpr, CHOSEN: tl.constexpr, QUERY_MASK: tl.constexpr,
):  # fmt: skip
    """Sum the softmax of a block of rows of one head: a plane of ``sums`` per peak or sum."""
    block, flat, head, batch = place(sizes.measured, sizes.heads, BLOCK_M)
    if RULES.right != 0:  # the longest first, so that no long one is left for the end
        block = tl.cdiv(sizes.measured, BLOCK_M) - 1 - block
    scoring = scoring_of(batch, head, masks, sizes, scaling)
    slot = block * BLOCK_M + tl.arange(0, BLOCK_M)
    own = read_rows(slot, batch, rows, query_mask, sizes, CHOSEN, QUERY_MASK)
    q = load_vectors(of_head(query, batch, head), own.index, query.n, query.d, own.inside, DOTS, CHECK=False)
    head_keys = Keys(of_head(key, batch, head // sizes.group), key.n, key.d, sizes.keys)
    special += batch.to(tl.int64) * sizes.pitch
    spans = spans_of(own, sizes, BLOCK_N, RULES, SUMS.placed)
    none = tl.zeros([BLOCK_M, 8], tl.float32)
    state = _State(tl.full([BLOCK_M], HIDDEN, tl.float32), none, none, none, none, none, none, none)
    for KIND in tl.static_range(-1, 2):
        state = _add_tiles(
            state, spans, q, own, head_keys, special, scoring, KIND, BLOCK_M, BLOCK_N, TAIL, DOTS, RULES, SUMS
        )

    sums += flat.to(tl.int64) * sizes.measured + slot
    _store(sums, sizes.plane, own.inside, state.peak, SUMS.peak)
    _store(sums, sizes.plane, own.inside, tl.sum(state.total, 1), SUMS.total)
    _store(sums, sizes.plane, own.inside, tl.sum(state.moment, 1), SUMS.moment)
    _store(sums, sizes.plane, own.inside, tl.sum(state.squares, 1), SUMS.squares)
    _store(sums, sizes.plane, own.inside, tl.sum(state.before, 1), SUMS.before)
    _store(sums, sizes.plane, own.inside, tl.sum(state.after, 1), SUMS.after)
    _store(sums, sizes.plane, own.inside, tl.sum(state.distance, 1), SUMS.distance)
    _store(sums, sizes.plane, own.inside, tl.sum(state.marked, 1), SUMS.marked)
