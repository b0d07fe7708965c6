"""Probabilities of single keys, from dot products of their own: no tile is searched for them."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lightning_geo.kernels.triton.output import store_plane
from lightning_geo.kernels.triton.scores import HIDDEN, exponents, in_band, masked_scores

__all__ = ["store_singles"]


class _Single(NamedTuple):
    """One key of each row: its column, whether it exists, and its index, int64 and 0 where it does not."""

    column: Any
    exists: Any
    index: Any


@triton.jit
def _single(column, exists):
    return _Single(column, exists, tl.where(exists, column, 0).to(tl.int64))


@triton.jit
def _dot_step(dots, q, single, keys, channels, WIDTH: tl.constexpr, INDEX: tl.constexpr):
    """Add the products of some channels with one key per row, if its statistic was requested."""
    if INDEX >= 0:
        pointers = keys.pointer + (single.index * keys.stride_n)[:, None] + channels[None, :] * keys.stride_d
        k = tl.load(pointers, mask=single.exists[:, None] & (channels < WIDTH)[None, :], other=0.0)
        dots += q * k.to(tl.float32)
    return dots


@triton.jit
def _store_share(output, dots, single, rows, base, mass, scoring, RULES: tl.constexpr, INDEX: tl.constexpr):
    """Store the probability of one key per row; 0 where the key is hidden or does not exist."""
    if INDEX >= 0:
        dot = tl.sum(dots, 1)
        s = masked_scores(
            dot, dot, rows.index, rows.position, single.index, single.index, scoring, RULES,
            QUERIES=-1, KEYS=-1, BAND=False, VEILED=False,
        )  # fmt: skip
        visible = single.exists
        if RULES.left or RULES.right != 0:
            visible = visible & in_band(rows.position, single.column, scoring, RULES)
        s = tl.where(visible, s, HIDDEN)
        # this dot product is summed in another order than the tile's, and must not exceed 1 for that
        share = tl.minimum(tl.exp2(exponents(s, base, scoring.factor, RULES.scaled)) / mass, 1.0)
        store_plane(output, share, INDEX)


@triton.jit
def store_singles(
    output, query, query_n, query_d, first, rows, keys, base, mass, scoring,
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
    dots_before = tl.zeros([BLOCK, 16], tl.float32)
    dots_own = tl.zeros([BLOCK, 16], tl.float32)
    dots_after = tl.zeros([BLOCK, 16], tl.float32)
    dots_first = tl.zeros([BLOCK, 16], tl.float32)
    # 16 channels at a time: whole vectors would not fit into registers
    for start in tl.range(0, DOTS.block, 16, num_stages=1, loop_unroll_factor=2):
        channels = start + tl.arange(0, 16)
        pointers = query + (rows.index * query_n)[:, None] + channels[None, :] * query_d
        q = tl.load(pointers, mask=(channels < DOTS.width)[None, :], other=0.0).to(tl.float32)
        dots_before = _dot_step(dots_before, q, key_before, keys, channels, DOTS.width, PLANES.previous_mass)
        dots_own = _dot_step(dots_own, q, key_own, keys, channels, DOTS.width, PLANES.self_mass)
        dots_after = _dot_step(dots_after, q, key_after, keys, channels, DOTS.width, PLANES.next_mass)
        dots_first = _dot_step(dots_first, q, key_first, keys, channels, DOTS.width, PLANES.first_mass)
    _store_share(output, dots_before, key_before, rows, base, mass, scoring, RULES, PLANES.previous_mass)
    _store_share(output, dots_own, key_own, rows, base, mass, scoring, RULES, PLANES.self_mass)
    _store_share(output, dots_after, key_after, rows, base, mass, scoring, RULES, PLANES.next_mass)
    _store_share(output, dots_first, key_first, rows, base, mass, scoring, RULES, PLANES.first_mass)
