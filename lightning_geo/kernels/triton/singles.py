"""Probabilities of single keys, from dot products of their own: no tile is searched for them."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lightning_geo.kernels.triton.masks import CAUSAL
from lightning_geo.kernels.triton.output import store_plane
from lightning_geo.kernels.triton.scores import HIDDEN, exponents, in_band, masked_scores

__all__ = ["store_singles"]

_CAUSAL = tl.constexpr(CAUSAL)


class _Single(NamedTuple):
    """One key of each row: its column, whether it exists, and its index, int64 and 0 where it does not."""

    column: Any
    exists: Any
    index: Any


@triton.jit
def _single(column, exists):
    return _Single(column, exists, tl.where(exists, column, 0).to(tl.int64))


@triton.jit
def _load_step(x, index, stride_n, stride_d, channels, WIDTH: tl.constexpr, WHOLE: tl.constexpr):
    """Load some channels of the vectors at some indices; WHOLE where all of these channels exist."""
    pointers = x + (index * stride_n)[:, None] + channels[None, :] * stride_d
    values = tl.load(pointers) if WHOLE else tl.load(pointers, mask=(channels < WIDTH)[None, :], other=0.0)
    return values.to(tl.float32)


@triton.jit
def _dot_step(
    dots, q, single, keys, channels, WIDTH: tl.constexpr, WHOLE: tl.constexpr, INDEX: tl.constexpr
):  # fmt: skip
    """Add the products of some channels with one key per row, if its statistic was requested.

    Where a row lacks the key, it is multiplied with key 0, and the product is dropped later.
    """
    if INDEX >= 0:
        k = _load_step(keys.pointer, single.index, keys.stride_n, keys.stride_d, channels, WIDTH, WHOLE)
        dots += tl.sum(q * k, 1)
    return dots


@triton.jit
def _store_share(output, dot, single, rows, base, share, scoring, RULES: tl.constexpr, INDEX: tl.constexpr):
    """Store the probability of one key per row; 0 where the key is hidden or does not exist."""
    if INDEX >= 0:
        s = masked_scores(
            dot, dot, rows.index, rows.position, single.index, single.index, scoring, RULES,
            QUERIES=-1, KEYS=-1, BAND=False, VEILED=False,
        )  # fmt: skip
        visible = single.exists
        if RULES.left or RULES.right != 0:
            visible = visible & in_band(rows.position, single.column, scoring, RULES)
        s = tl.where(visible, s, HIDDEN)
        # this dot product is summed in another order than the tile's, and must not exceed 1 for that
        mass = tl.minimum(tl.exp2(exponents(s, base, scoring.factor, RULES.scaled)) * share, 1.0)
        store_plane(output, mass, INDEX)


@triton.jit
def store_singles(
    output, query, query_n, query_d, first, rows, keys, base, share, scoring,
    DOTS: tl.constexpr, RULES: tl.constexpr, PLANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the mass on the key before a row, on its own key, on the one after, and on the first."""
    first_column = rows.position
    if PLANES.first_mass >= 0:
        first_column = tl.load(first) + tl.zeros([BLOCK], tl.int32)
    key_before = _single(rows.position - 1, (rows.position >= 1) & (rows.position - 1 < keys.count))
    key_own = _single(rows.position, (rows.position >= 0) & (rows.position < keys.count))
    key_after = _single(rows.position + 1, (rows.position >= -1) & (rows.position + 1 < keys.count))
    key_first = _single(first_column, first_column < keys.count)
    # 64 bytes at a time, neighbours in neighbouring threads: a thread that read a row alone would wait for
    # as many lines of the cache as there are rows
    LINE: tl.constexpr = 512 // query.dtype.element_ty.primitive_bitwidth
    STEP: tl.constexpr = min(LINE, DOTS.blocks[0])
    dots_before = tl.zeros([BLOCK], tl.float32)
    dots_own = tl.zeros([BLOCK], tl.float32)
    dots_after = tl.zeros([BLOCK], tl.float32)
    dots_first = tl.zeros([BLOCK], tl.float32)
    # under causality the key after a row is hidden, whatever the product
    AFTER: tl.constexpr = -1 if RULES.right == _CAUSAL else PLANES.next_mass
    WIDTH: tl.constexpr = DOTS.width
    WHOLE: tl.constexpr = DOTS.width % STEP == 0
    for start in tl.range(0, DOTS.width, STEP, num_stages=1):
        channels = start + tl.arange(0, STEP)
        q = _load_step(query, rows.index, query_n, query_d, channels, WIDTH, WHOLE)
        dots_before = _dot_step(
            dots_before, q, key_before, keys, channels, WIDTH, WHOLE, PLANES.previous_mass
        )
        dots_own = _dot_step(dots_own, q, key_own, keys, channels, WIDTH, WHOLE, PLANES.self_mass)
        dots_after = _dot_step(dots_after, q, key_after, keys, channels, WIDTH, WHOLE, AFTER)
        dots_first = _dot_step(dots_first, q, key_first, keys, channels, WIDTH, WHOLE, PLANES.first_mass)
    _store_share(output, dots_before, key_before, rows, base, share, scoring, RULES, PLANES.previous_mass)
    _store_share(output, dots_own, key_own, rows, base, share, scoring, RULES, PLANES.self_mass)
    _store_share(output, dots_after, key_after, rows, base, share, scoring, RULES, PLANES.next_mass)
    _store_share(output, dots_first, key_first, rows, base, share, scoring, RULES, PLANES.first_mass)
