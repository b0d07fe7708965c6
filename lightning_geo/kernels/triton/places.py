"""The part of the problem that a program works on: a head, its rows, its keys and masks."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lightning_geo.kernels.triton.scores import Scoring

__all__ = ["Keys", "Rows", "of_head", "place", "read_rows", "scoring_of"]


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
def of_head(strided, batch, head):
    """Return the pointer to one head's part of vectors or counts."""
    return strided.pointer + (batch.to(tl.int64) * strided.b + head.to(tl.int64) * strided.h)


@triton.jit
def scoring_of(batch, head, masks, sizes, scaling):
    """Move the masks' pointers to one head."""
    batch, head = batch.to(tl.int64), head.to(tl.int64)
    return Scoring(
        masks.key_row + (batch * masks.row_b + head * masks.row_h),
        masks.mask_a + (batch * masks.a_b + head * masks.a_h), masks.a_q, masks.a_k,
        masks.mask_b + (batch * masks.b_b + head * masks.b_h), masks.b_q, masks.b_k,
        sizes.left, sizes.right, scaling.scale, scaling.softcap, scaling.factor,
    )  # fmt: skip


@triton.jit
def read_rows(slot, batch, rows, query_mask, sizes, CHOSEN: tl.constexpr, QUERY_MASK: tl.constexpr):
    """Find the rows of a sequence at some slots of the output."""
    inside = slot < sizes.measured
    row = tl.where(inside, slot, 0)
    if CHOSEN:
        at = batch.to(tl.int64) * sizes.measured + slot
        row = tl.load(rows + at, mask=inside, other=0).to(tl.int32)
    index = row.to(tl.int64)
    real = inside
    if QUERY_MASK:
        real = inside & (tl.load(query_mask + (batch.to(tl.int64) * sizes.queries + index)) != 0)
    return Rows(index, row + sizes.offset, inside, real)
