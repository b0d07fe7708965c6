"""From a row's sums to its statistics, a row to each thread.

The pass over keys leaves a peak and some sums per row, which tensor cores spread over four threads each; here
every row has a thread of its own. Single keys' probabilities come from dot products of their own.
"""

import triton
import triton.language as tl

from lightning_geo.kernels.triton.output import Output, count_band, load_sum, store_softmax, store_sums
from lightning_geo.kernels.triton.places import Keys, place, read_rows, scoring_of
from lightning_geo.kernels.triton.scores import HIDDEN, base_of
from lightning_geo.kernels.triton.singles import store_singles

__all__ = ["finish_kernel"]


@triton.jit
def finish_kernel(
    query, query_b, query_h, query_n, query_d, key, key_b, key_h, key_n, key_d,
    rows, query_mask, sinks, counts, counts_b, counts_h, counts_q, first,
    key_row, row_b, row_h, mask_a, a_b, a_h, a_q, a_k, mask_b, b_b, b_h, b_q, b_k,
    sums, planes, live, softmax, damaged,
    heads, group, queries, keys, measured, offset, left, right, plane, scale, softcap, factor,
    BLOCK: tl.constexpr, DOTS: tl.constexpr, RULES: tl.constexpr, PLANES: tl.constexpr, SUMS: tl.constexpr,
    CHOSEN: tl.constexpr, QUERY_MASK: tl.constexpr, COUNTED: tl.constexpr, RECEIVED: tl.constexpr,
):  # fmt: skip
    """Compute the statistics of a block of rows of one head, and what the pass over queries needs of them."""
    block, flat, head, batch = place(measured, heads, BLOCK)
    query += batch.to(tl.int64) * query_b + head.to(tl.int64) * query_h
    key += batch.to(tl.int64) * key_b + (head // group).to(tl.int64) * key_h
    scoring = scoring_of(
        batch, head, key_row, row_b, row_h, mask_a, a_b, a_h, a_q, a_k, mask_b, b_b, b_h, b_q, b_k,
        left, right, scale, softcap, factor,
    )  # fmt: skip
    slot = block * BLOCK + tl.arange(0, BLOCK)
    own = read_rows(slot, batch, rows, query_mask, queries, measured, offset, CHOSEN, QUERY_MASK)
    at = flat.to(tl.int64) * measured + slot

    peak = load_sum(sums, plane, at, own.inside, SUMS.peak)
    mass = load_sum(sums, plane, at, own.inside, SUMS.total)
    spread = load_sum(sums, plane, at, own.inside, SUMS.moment)
    # a visible -inf or NaN leaves a NaN in the moment even where no score was above the hidden ones
    alive = own.real & ((peak > 0.5 * HIDDEN) | (spread != spread))
    finite = (mass + spread) - (mass + spread) == 0.0
    base = base_of(peak, factor, RULES.scaled)
    output = Output(planes, plane, at, own.inside, alive & finite)
    tl.store(live + at, alive.to(tl.int8), mask=own.inside)
    if RECEIVED:
        store_softmax(softmax, damaged + flat, output, base, mass, alive)
    store_sums(output, sums, peak, base, mass, spread, sinks + head, scoring, RULES, PLANES, SUMS)
    if PLANES.singles:
        head_keys = Keys(key, key_n, key_d, keys)
        store_singles(
            output, query, query_n, query_d, first + batch, own, head_keys, base, 1.0 / mass, scoring,
            DOTS, RULES, PLANES, BLOCK,
        )  # fmt: skip
    if PLANES.visible_keys >= 0:
        visible = count_band(own, keys, left, right, RULES)
        if COUNTED:
            of_head = batch.to(tl.int64) * counts_b + head.to(tl.int64) * counts_h
            visible = tl.load(counts + (of_head + own.index * counts_q))
        tl.store(planes + (tl.full([], PLANES.visible_keys, tl.int64) * plane + at), visible, mask=own.inside)
