"""Probabilities of single keys, from dot products of their own: no tile is searched for them."""

import triton
import triton.language as tl

from lightning_geo.kernels.triton.scores import HIDDEN, exponents, in_band, masked_scores

__all__ = ["dot_step", "share_of"]


@triton.jit
def dot_step(dots, q, key, index, inside, channels, key_n, key_d, D: tl.constexpr, WANTED: tl.constexpr):
    """Add the products of some channels with one key per row, if that key is wanted."""
    if WANTED:
        pointers = key + (index * key_n)[:, None] + channels[None, :] * key_d
        k = tl.load(pointers, mask=inside[:, None] & (channels < D)[None, :], other=0.0)
        dots += q * k.to(tl.float32)
    return dots


@triton.jit
def share_of(dot, column, index, inside, row, position, base, total, scoring, RULES: tl.constexpr):
    """Probability of one key per row, from its dot product; 0 where it is hidden or does not exist."""
    s = masked_scores(
        dot, dot, row, position, index, index, scoring, RULES, QUERIES=-1, KEYS=-1, BAND=False, VEILED=False
    )
    if RULES.left or RULES.right != 0:
        inside = inside & in_band(position, column, scoring, RULES)
    s = tl.where(inside, s, HIDDEN)
    # this dot product is summed in another order than the tile's: not above 1 for that
    return tl.minimum(tl.exp2(exponents(s, base, scoring.factor, RULES.scaled)) / total, 1.0)
