"""The tiles of keys that a block of rows goes through, and those that need no look at single columns."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = ["Spans", "spans_of"]


class Spans(NamedTuple):
    """Tiles ``[begin, stop)`` hold the keys that any row may see.

    Of these, ``[a, b)`` lie before all rows and ``[c, d)`` after all of them, and no row's band cuts them;
    where no statistic asks for the side, ``[a, b)`` are all uncut tiles.
    """

    begin: Any
    a: Any
    b: Any
    c: Any
    d: Any
    stop: Any


@triton.jit
def spans_of(rows, sizes, BLOCK_N: tl.constexpr, RULES: tl.constexpr, PLACED: tl.constexpr):
    """Cut the keys by the lowest and highest position of a row that counts."""
    lowest = tl.min(tl.where(rows.real, rows.position, 2147483647), 0)
    highest = tl.max(tl.where(rows.real, rows.position, -2147483647), 0)
    any_real = highest >= lowest
    begin = 0
    stop = sizes.keys
    if RULES.left:
        begin = tl.minimum(tl.maximum(lowest - sizes.left, 0), sizes.keys)
    if RULES.right != 0:
        stop = tl.maximum(tl.minimum(highest + sizes.right + 1, sizes.keys), begin)
    begin = tl.where(any_real, begin, 0) // BLOCK_N
    stop = tl.cdiv(tl.where(any_real, stop, 0), BLOCK_N)
    a = begin
    if RULES.left:
        a = tl.minimum(tl.cdiv(tl.maximum(highest - sizes.left, 0), BLOCK_N), stop)
        a = tl.maximum(a, begin)
    limit = sizes.keys
    if RULES.right != 0:
        limit = tl.minimum(sizes.keys, tl.maximum(lowest + sizes.right + 1, 0))
    if PLACED:
        b = tl.minimum(tl.maximum(lowest, 0), limit) // BLOCK_N
        b = tl.maximum(tl.minimum(b, stop), a)
        c = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(highest + 1, 0), BLOCK_N), b), stop)
        if RULES.left:
            c = tl.maximum(c, a)
        d = tl.maximum(tl.minimum(limit // BLOCK_N, stop), c)
    else:
        b = tl.maximum(tl.minimum(limit // BLOCK_N, stop), a)
        c = b
        d = b
    return Spans(begin, a, b, c, d, stop)
