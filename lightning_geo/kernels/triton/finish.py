"""From a row's sums to its statistics, a row to each thread.

The pass over keys leaves a peak and some sums per row, which tensor cores spread over four threads each; here
every row has a thread of its own. Single keys' probabilities come from dot products of their own.
"""

import triton
import triton.language as tl

from lightning_geo.kernels.triton.output import Output, count_band, load_sum, store_softmax, store_sums
from lightning_geo.kernels.triton.places import Keys, of_head, place, read_rows, scoring_of
from lightning_geo.kernels.triton.scores import HIDDEN, base_of
from lightning_geo.kernels.triton.singles import store_singles

__all__ = ["finish_kernel"]


@triton.jit
def finish_kernel(
    query, key, masks, sizes, scaling, rows, query_mask, sinks, counts, first, sums,
    planes, live, softmax, damaged,
    BLOCK: tl.constexpr, DOTS: tl.constexpr, RULES: tl.constexpr, PLANES: tl.constexpr, SUMS: tl.constexpr,
    CHOSEN: tl.constexpr, QUERY_MASK: tl.constexpr, COUNTED: tl.constexpr, RECEIVED: tl.constexpr,
):  # fmt: skip
    """Compute the statistics of a block of rows of one head, and what the pass over queries needs of them."""
    block, flat, head, batch = place(sizes.measured, sizes.heads, BLOCK)
    scoring = scoring_of(batch, head, masks, sizes, scaling)
    slot = block * BLOCK + tl.arange(0, BLOCK)
    own = read_rows(slot, batch, rows, query_mask, sizes, CHOSEN, QUERY_MASK)
    at = flat.to(tl.int64) * sizes.measured + slot

    peak = load_sum(sums, sizes.plane, at, own.inside, SUMS.peak)
    mass = load_sum(sums, sizes.plane, at, own.inside, SUMS.total)
    spread = load_sum(sums, sizes.plane, at, own.inside, SUMS.moment)
    # a visible -inf or NaN leaves a NaN in the moment even where no score was above the hidden ones
    alive = own.real & ((peak > 0.5 * HIDDEN) | (spread != spread))
    finite = (mass + spread) - (mass + spread) == 0.0
    base = base_of(peak, scaling.factor, RULES.scaled)
    output = Output(planes, sizes.plane, at, own.inside, alive & finite)
    tl.store(live + at, alive.to(tl.int8), mask=own.inside)
    if RECEIVED:
        store_softmax(softmax, damaged + flat, output, base, mass, alive)
    store_sums(output, sums, peak, base, mass, spread, sinks + head, scoring, RULES, PLANES, SUMS)
    if PLANES.singles:
        head_keys = Keys(of_head(key, batch, head // sizes.group), key.n, key.d, sizes.keys)
        store_singles(
            output, of_head(query, batch, head), query.n, query.d, first + batch, own, head_keys, base,
            1.0 / mass, scoring, DOTS, RULES, PLANES, BLOCK,
        )  # fmt: skip
    if PLANES.visible_keys >= 0:
        visible = count_band(own, sizes, RULES)
        if COUNTED:
            visible = tl.load(of_head(counts, batch, head) + own.index * counts.q)
        index = tl.full([], PLANES.visible_keys, tl.int64)
        tl.store(planes + (index * sizes.plane + at), visible, mask=own.inside)
