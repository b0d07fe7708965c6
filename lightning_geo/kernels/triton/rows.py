"""One pass over the keys with queries as rows: everything but the mass that keys receive.

The softmax is taken in base 2 and centred: with s the scores, c = log2(e), m the peak so far and
t = c (s - m), a row's state is l = sum 2^t, moment = -sum 2^t t and so on, and entropy =
ln 2 (log2 l + moment / l) keeps its digits at any offset of the scores. Where nothing but bool masks and
bands touches the dot products, s is the bare product, c holds the scale, and t is one fused multiply-add
c s - (c m): it rounds once, after the difference, and the rounding of c m shifts all of a row alike. That
holds while c m < 2^31; rows beyond, which float32 cannot resolve anyway, come out as NaN.

Each state is held per row and column class, the column modulo 8: so tensor cores spread their results over
threads, and sums over a tile stay within a thread. They cross threads once, at the end.
"""

import triton
import triton.language as tl

from lightning_geo.kernels.triton.masks import CAUSAL
from lightning_geo.kernels.triton.scores import (
    BOOL,
    HIDDEN,
    Scoring,
    base_of,
    exponents,
    load_block,
    masked_scores,
    sum_classes,
)
from lightning_geo.kernels.triton.shares import dot_step, share_of

__all__ = ["rows_kernel"]

_LN2 = tl.constexpr(0.6931471805599453)
_CAUSAL = tl.constexpr(CAUSAL)


@triton.jit
def _sum_ahead(values, mass, reach, M: tl.constexpr, N: tl.constexpr):
    """Sum [M, N] times (column - reach) likewise; the column is 8 times a constant, plus its class."""
    steps = (tl.arange(0, N // 8) * 8).to(tl.float32)[None, :, None]
    classes = tl.arange(0, 8).to(tl.float32)[None, :]
    return tl.sum(tl.reshape(values, [M, N // 8, 8]) * steps, 1) + (classes - reach[:, None]) * mass


@triton.jit
def _tile(
    tile,
    q,
    key,
    special,
    scoring,
    row,
    position,
    peak,
    total,
    moment,
    squares,
    before,
    after,
    distance,
    marked,
    key_n,
    key_d,
    keys,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    RULES: tl.constexpr,
    SQUARES: tl.constexpr,
    SIDES: tl.constexpr,
    DISTANCE: tl.constexpr,
    SPECIAL: tl.constexpr,
):
    """Take one tile into the state. KIND: all keys before (-1) or after (1) all rows and visible as far as
    band and tail go, or anything (0).
    """
    start = tile * BLOCK_N
    inner = tl.arange(0, BLOCK_N)
    channels = tl.arange(0, BLOCK_D)
    column = start + inner
    pointers = (
        key + start.to(tl.int64) * key_n + (inner.to(tl.int64) * key_n)[:, None] + channels[None, :] * key_d
    )
    k = load_block(pointers, column < keys, channels, D, BLOCK_D, KIND == 0 and TAIL, UPCAST)
    index = tl.minimum(column, keys - 1) if KIND == 0 and TAIL else column
    # A dense mask of flags enters as the product's accumulator: so it takes the layout of the product. The
    # other way round, every sum over the tile would be shuffled across threads.
    VEILED: tl.constexpr = RULES.a == BOOL and RULES.a_rows
    if VEILED:
        places = scoring.mask_a + (row * scoring.a_q)[:, None] + (index.to(tl.int64) * scoring.a_k)[None, :]
        veil = tl.where(tl.load(places) != 0, 0.0, HIDDEN)
        s = tl.dot(q, tl.trans(k), veil, input_precision=PRECISION)
    else:
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    s = masked_scores(
        s, veil if VEILED else s, row, position, column, index.to(tl.int64), scoring, RULES,
        QUERIES=0, KEYS=1, BAND=KIND == 0, VEILED=VEILED,
    )  # fmt: skip
    if KIND == 0 and TAIL and RULES.key_row == 0:
        s = tl.where((column < keys)[None, :], s, HIDDEN)

    new = tl.maximum(peak, tl.max(s, 1))
    base = base_of(new, scoring.factor, RULES.scaled)
    shift = base_of(peak, scoring.factor, RULES.scaled) - base
    if RULES.scaled:
        shift *= scoring.factor
    decay = tl.exp2(shift)[:, None]
    t = exponents(s, base[:, None], scoring.factor, RULES.scaled)
    e = tl.exp2(t)

    mass = sum_classes(e, BLOCK_M, BLOCK_N)
    moment = decay * (moment - shift[:, None] * total) - sum_classes(e * t, BLOCK_M, BLOCK_N)
    total = decay * total + mass
    if SQUARES:
        squares = decay * decay * squares + sum_classes(e * e, BLOCK_M, BLOCK_N)
    if SIDES or DISTANCE:
        reach = (position - start).to(tl.float32)
        ahead = inner.to(tl.float32)[None, :] - reach[:, None]
    if SIDES:
        before = decay * before
        if KIND < 0:
            before += mass
        elif KIND == 0:
            before += sum_classes(tl.where(ahead < 0, e, 0.0), BLOCK_M, BLOCK_N)
    if SIDES and RULES.right != _CAUSAL:
        after = decay * after
        if KIND > 0:
            after += mass
        elif KIND == 0:
            after += sum_classes(tl.where(ahead > 0, e, 0.0), BLOCK_M, BLOCK_N)
    if DISTANCE:
        if KIND == 0:
            distance = decay * distance + sum_classes(e * tl.abs(ahead), BLOCK_M, BLOCK_N)
        else:
            signed = _sum_ahead(e, mass, reach, BLOCK_M, BLOCK_N)
            distance = decay * distance + (signed if KIND > 0 else -signed)
    if SPECIAL:
        weight = tl.load(special + column)[None, :]
        marked = decay * marked + sum_classes(e * weight, BLOCK_M, BLOCK_N)
    return new, total, moment, squares, before, after, distance, marked


@triton.jit
def _store(planes, plane, offsets, values, defined, inside, INDEX: tl.constexpr):
    if INDEX >= 0:
        tl.store(planes + plane * INDEX + offsets, tl.where(defined, values, float("nan")), mask=inside)


@triton.jit
def rows_kernel(
    query,
    key,
    rows,
    query_mask,
    special,
    sinks,
    counts,
    first,
    key_row,
    mask_a,
    mask_b,
    planes,
    live,
    softmax,
    damaged,
    query_b,
    query_h,
    query_n,
    query_d,
    key_b,
    key_h,
    key_n,
    key_d,
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
    counts_b,
    counts_h,
    counts_q,
    heads,
    group,
    queries,
    keys,
    pitch,
    measured,
    offset,
    left,
    right,
    plane,
    scale,
    softcap,
    factor,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    RULES: tl.constexpr,
    CHOSEN: tl.constexpr,
    QUERY_MASK: tl.constexpr,
    COUNTED: tl.constexpr,
    RECEIVED: tl.constexpr,
    VISIBLE_KEYS: tl.constexpr,
    LOGSUMEXP: tl.constexpr,
    ENTROPY: tl.constexpr,
    CONCENTRATION: tl.constexpr,
    MAX_PROBABILITY: tl.constexpr,
    MAX_LOGIT: tl.constexpr,
    SELF_MASS: tl.constexpr,
    PREVIOUS_MASS: tl.constexpr,
    NEXT_MASS: tl.constexpr,
    FIRST_MASS: tl.constexpr,
    BACKWARD_MASS: tl.constexpr,
    FORWARD_MASS: tl.constexpr,
    ATTENTION_DISTANCE: tl.constexpr,
    SPECIAL_MASS: tl.constexpr,
    LEARNED_SINK_MASS: tl.constexpr,
):
    """Statistics of a block of rows of one head. A constexpr in capitals named like a statistic is its
    plane's index in ``planes``, -1 where nobody asks for it.
    """
    SIDES: tl.constexpr = BACKWARD_MASS >= 0 or FORWARD_MASS >= 0
    blocks = tl.cdiv(measured, BLOCK_M)
    pid = tl.program_id(0)
    block = pid % blocks
    if RULES.right != 0:  # the longest first, so that no long one is left for the end
        block = blocks - 1 - block
    head = (pid // blocks) % heads
    batch = (pid // blocks) // heads
    batch64 = batch.to(tl.int64)
    query += batch64 * query_b + head.to(tl.int64) * query_h
    key += batch64 * key_b + (head // group).to(tl.int64) * key_h
    mask_a += batch64 * a_b + head.to(tl.int64) * a_h
    mask_b += batch64 * b_b + head.to(tl.int64) * b_h
    key_row += batch64 * row_b + head.to(tl.int64) * row_h
    special += batch64 * pitch
    scoring = Scoring(key_row, mask_a, a_q, a_k, mask_b, b_q, b_k, left, right, scale, softcap, factor)

    # ---- rows
    slot = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = slot < measured
    if CHOSEN:
        row = tl.load(rows + batch64 * measured + slot, mask=inside, other=0).to(tl.int32)
    else:
        row = tl.where(inside, slot, 0)
    row64 = row.to(tl.int64)
    position = row + offset
    real = inside
    if QUERY_MASK:
        real = inside & (tl.load(query_mask + batch64 * queries + row64) != 0)
    channels = tl.arange(0, BLOCK_D)
    pointers = query + (row64 * query_n)[:, None] + channels[None, :] * query_d
    q = load_block(pointers, inside, channels, D, BLOCK_D, False, UPCAST)

    # ---- which tiles: nearest and farthest position of a row that counts
    lowest = tl.min(tl.where(real, position, 2147483647), 0)
    highest = tl.max(tl.where(real, position, -2147483647), 0)
    any_real = highest >= lowest
    begin = 0
    stop = keys
    if RULES.left:
        begin = tl.minimum(tl.maximum(lowest - left, 0), keys)
    if RULES.right != 0:
        stop = tl.maximum(tl.minimum(highest + right + 1, keys), begin)
    begin = tl.where(any_real, begin, 0) // BLOCK_N
    stop = tl.cdiv(tl.where(any_real, stop, 0), BLOCK_N)
    # whole tiles [a, b) lie before all rows and [c, d) after them, and no row's band cuts them
    a = begin
    if RULES.left:
        a = tl.minimum(tl.cdiv(tl.maximum(highest - left, 0), BLOCK_N), stop)
        a = tl.maximum(a, begin)
    limit = keys
    if RULES.right != 0:
        limit = tl.minimum(keys, tl.maximum(lowest + right + 1, 0))
    if SIDES or ATTENTION_DISTANCE >= 0:
        b = tl.minimum(tl.maximum(lowest, 0), limit) // BLOCK_N
        b = tl.maximum(tl.minimum(b, stop), a)
        c = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(highest + 1, 0), BLOCK_N), b), stop)
        if RULES.left:
            c = tl.maximum(c, a)
        d = tl.maximum(tl.minimum(limit // BLOCK_N, stop), c)
    else:  # nobody asks on which side a key lies
        b = tl.maximum(tl.minimum(limit // BLOCK_N, stop), a)
        c = b
        d = b

    peak = tl.full([BLOCK_M], HIDDEN, tl.float32)
    total = tl.zeros([BLOCK_M, 8], tl.float32)
    moment = tl.zeros([BLOCK_M, 8], tl.float32)
    squares = tl.zeros([BLOCK_M, 8], tl.float32)
    before = tl.zeros([BLOCK_M, 8], tl.float32)
    after = tl.zeros([BLOCK_M, 8], tl.float32)
    distance = tl.zeros([BLOCK_M, 8], tl.float32)
    marked = tl.zeros([BLOCK_M, 8], tl.float32)
    for tile in range(a, b):
        peak, total, moment, squares, before, after, distance, marked = _tile(
            tile, q, key, special, scoring, row64, position,
            peak, total, moment, squares, before, after, distance, marked, key_n, key_d, keys,
            -1, D, BLOCK_D, BLOCK_M, BLOCK_N, TAIL, UPCAST, PRECISION, RULES,
            CONCENTRATION >= 0, SIDES, ATTENTION_DISTANCE >= 0, SPECIAL_MASS >= 0,
        )  # fmt: skip
    for step in range((a - begin) + (c - b) + (stop - d)):
        tile = begin + step
        tile = tl.where(tile >= a, tile + (b - a), tile)
        tile = tl.where(tile >= c, tile + (d - c), tile)
        peak, total, moment, squares, before, after, distance, marked = _tile(
            tile, q, key, special, scoring, row64, position,
            peak, total, moment, squares, before, after, distance, marked, key_n, key_d, keys,
            0, D, BLOCK_D, BLOCK_M, BLOCK_N, TAIL, UPCAST, PRECISION, RULES,
            CONCENTRATION >= 0, SIDES, ATTENTION_DISTANCE >= 0, SPECIAL_MASS >= 0,
        )  # fmt: skip
    if (SIDES or ATTENTION_DISTANCE >= 0) and RULES.right != _CAUSAL:
        for tile in range(c, d):
            peak, total, moment, squares, before, after, distance, marked = _tile(
                tile, q, key, special, scoring, row64, position,
                peak, total, moment, squares, before, after, distance, marked, key_n, key_d, keys,
                1, D, BLOCK_D, BLOCK_M, BLOCK_N, TAIL, UPCAST, PRECISION, RULES,
                CONCENTRATION >= 0, SIDES, ATTENTION_DISTANCE >= 0, SPECIAL_MASS >= 0,
            )  # fmt: skip

    # ---- what the sums say
    mass = tl.sum(total, 1)
    spread = tl.sum(moment, 1)
    # a visible -inf or NaN leaves a NaN in the moment even where no score was above the hidden ones
    alive = real & ((peak > 0.5 * HIDDEN) | (spread != spread))
    finite = (mass + spread) - (mass + spread) == 0.0
    defined = alive & finite
    base = base_of(peak, factor, RULES.scaled)
    share = 1.0 / mass
    at = (batch * heads + head).to(tl.int64) * measured + slot
    tl.store(live + at, alive.to(tl.int8), mask=inside)
    if RECEIVED:
        # a row that gives nothing is far below any score
        tl.store(softmax + at, tl.where(defined, base, -HIDDEN), mask=inside)
        tl.store(softmax + plane + at, tl.where(defined, share, 0.0), mask=inside)
        broken = tl.max((alive & ~finite).to(tl.int32), 0)
        tl.store(damaged + batch * heads + head, 1, mask=broken != 0)

    logsumexp = base + tl.log2(mass) * _LN2 if RULES.scaled else (base + tl.log2(mass)) * _LN2
    _store(planes, plane, at, logsumexp, defined, inside, LOGSUMEXP)
    entropy = (tl.log2(mass) + spread * share) * _LN2
    _store(planes, plane, at, tl.maximum(entropy, 0.0), defined, inside, ENTROPY)
    if CONCENTRATION >= 0:
        _store(planes, plane, at, tl.sum(squares, 1) * share * share, defined, inside, CONCENTRATION)
    top = tl.minimum(tl.exp2(exponents(peak, base, factor, RULES.scaled)) * share, 1.0)
    _store(planes, plane, at, top, defined, inside, MAX_PROBABILITY)
    _store(planes, plane, at, peak if RULES.scaled else peak * scale, defined, inside, MAX_LOGIT)
    if SIDES:
        _store(planes, plane, at, tl.sum(before, 1) * share, defined, inside, BACKWARD_MASS)
        _store(planes, plane, at, tl.sum(after, 1) * share, defined, inside, FORWARD_MASS)
    if ATTENTION_DISTANCE >= 0:
        _store(planes, plane, at, tl.sum(distance, 1) * share, defined, inside, ATTENTION_DISTANCE)
    if SPECIAL_MASS >= 0:
        _store(planes, plane, at, tl.sum(marked, 1) * share, defined, inside, SPECIAL_MASS)
    if LEARNED_SINK_MASS >= 0:
        sink = tl.load(sinks + head).to(tl.float32)
        _store(planes, plane, at, 1.0 / (1.0 + tl.exp(logsumexp - sink)), defined, inside, LEARNED_SINK_MASS)

    # ---- single keys, from dot products of their own: the one before, the own, the one after, the first
    if SELF_MASS >= 0 or PREVIOUS_MASS >= 0 or NEXT_MASS >= 0 or FIRST_MASS >= 0:
        first_column = position
        if FIRST_MASS >= 0:
            first_column = tl.load(first + batch) + tl.zeros([BLOCK_M], tl.int32)
        inside_p = (position >= 1) & (position - 1 < keys)
        inside_s = (position >= 0) & (position < keys)
        inside_n = (position >= -1) & (position + 1 < keys)
        inside_f = first_column < keys
        index_p = tl.where(inside_p, position - 1, 0).to(tl.int64)
        index_s = tl.where(inside_s, position, 0).to(tl.int64)
        index_n = tl.where(inside_n, position + 1, 0).to(tl.int64)
        index_f = tl.where(inside_f, first_column, 0).to(tl.int64)
        # some channels at a time: whole vectors would not fit into registers
        dots_p = tl.zeros([BLOCK_M, 16], tl.float32)
        dots_s = tl.zeros([BLOCK_M, 16], tl.float32)
        dots_n = tl.zeros([BLOCK_M, 16], tl.float32)
        dots_f = tl.zeros([BLOCK_M, 16], tl.float32)
        for start in tl.range(0, BLOCK_D, 16, num_stages=1, loop_unroll_factor=2):
            some = start + tl.arange(0, 16)
            places = query + (row64 * query_n)[:, None] + some[None, :] * query_d
            part = tl.load(places, mask=(some < D)[None, :], other=0.0).to(tl.float32)
            dots_p = dot_step(dots_p, part, key, index_p, inside_p, some, key_n, key_d, D, PREVIOUS_MASS >= 0)
            dots_s = dot_step(dots_s, part, key, index_s, inside_s, some, key_n, key_d, D, SELF_MASS >= 0)
            dots_n = dot_step(dots_n, part, key, index_n, inside_n, some, key_n, key_d, D, NEXT_MASS >= 0)
            dots_f = dot_step(dots_f, part, key, index_f, inside_f, some, key_n, key_d, D, FIRST_MASS >= 0)
        if PREVIOUS_MASS >= 0:
            found = share_of(
                tl.sum(dots_p, 1),
                position - 1,
                index_p,
                inside_p,
                row64,
                position,
                base,
                mass,
                scoring,
                RULES,
            )
            _store(planes, plane, at, found, defined, inside, PREVIOUS_MASS)
        if SELF_MASS >= 0:
            found = share_of(
                tl.sum(dots_s, 1), position, index_s, inside_s, row64, position, base, mass, scoring, RULES
            )
            _store(planes, plane, at, found, defined, inside, SELF_MASS)
        if NEXT_MASS >= 0:
            found = share_of(
                tl.sum(dots_n, 1),
                position + 1,
                index_n,
                inside_n,
                row64,
                position,
                base,
                mass,
                scoring,
                RULES,
            )
            _store(planes, plane, at, found, defined, inside, NEXT_MASS)
        if FIRST_MASS >= 0:
            found = share_of(
                tl.sum(dots_f, 1),
                first_column,
                index_f,
                inside_f,
                row64,
                position,
                base,
                mass,
                scoring,
                RULES,
            )
            _store(planes, plane, at, found, defined, inside, FIRST_MASS)
    if VISIBLE_KEYS >= 0:
        if COUNTED:
            visible = tl.load(counts + batch64 * counts_b + head.to(tl.int64) * counts_h + row64 * counts_q)
        else:
            nearest = tl.zeros([BLOCK_M], tl.int32)
            farthest = nearest + (keys - 1)
            if RULES.left:
                nearest = tl.maximum(position - left, 0)
            if RULES.right != 0:
                farthest = tl.minimum(position + right, keys - 1)
            visible = tl.maximum(farthest - nearest + 1, 0).to(tl.float32)
        tl.store(planes + plane * VISIBLE_KEYS + at, visible, mask=inside)
