"""Which part of the problem a program works on: its head, its rows, the keys and masks of that head."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lightning_geo.kernels.triton.scores import Scoring

__all__ = ["Keys", "Rows", "place", "read_rows", "scoring_of"]


class Rows(NamedTuple):
    """A program's block of rows: index (int64), key position, whether it exists, and whether it counts."""

    index: Any
    position: Any
    inside: Any
    real: Any


class Keys(NamedTuple):
    """The keys of one head."""

    pointer: Any
    stride_n: Any
    stride_d: Any
    count: Any


@triton.jit
def place(count, heads, BLOCK: tl.constexpr):
    """Return this program's block of ``count`` rows or keys, its head over all sequences, head, sequence."""
    blocks = tl.cdiv(count, BLOCK)
    flat = tl.program_id(0) // blocks
    return tl.program_id(0) % blocks, flat, flat % heads, flat // heads


@triton.jit
def scoring_of(
    batch, head, key_row, row_b, row_h, mask_a, a_b, a_h, a_q, a_k, mask_b, b_b, b_h, b_q, b_k,
    left, right, scale, softcap, factor,
):  # fmt: skip
    """Move the masks' pointers to one head."""
    batch, head = batch.to(tl.int64), head.to(tl.int64)
    return Scoring(
        key_row + (batch * row_b + head * row_h),
        mask_a + (batch * a_b + head * a_h), a_q, a_k,
        mask_b + (batch * b_b + head * b_h), b_q, b_k,
        left, right, scale, softcap, factor,
    )  # fmt: skip


@triton.jit
def read_rows(
    slot, batch, rows, query_mask, queries, measured, offset, CHOSEN: tl.constexpr, QUERY_MASK: tl.constexpr
):  # fmt: skip
    """Find the rows of a sequence at some slots of the output."""
    inside = slot < measured
    row = tl.where(inside, slot, 0)
    if CHOSEN:
        row = tl.load(rows + (batch.to(tl.int64) * measured + slot), mask=inside, other=0).to(tl.int32)
    index = row.to(tl.int64)
    real = inside
    if QUERY_MASK:
        real = inside & (tl.load(query_mask + (batch.to(tl.int64) * queries + index)) != 0)
    return Rows(index, row + offset, inside, real)
