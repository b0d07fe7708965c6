"""Merges moments of parts of the tokens, one part from each program of another kernel."""

import triton
import triton.language as tl

__all__ = ["merge_kernel"]


@triton.jit
def _load_sums(sums, part, there, channel, D: tl.constexpr):
    """Load [parts, channels], 0 for parts that are not there."""
    at = part[:, None] * D + channel[None, :]
    return tl.load(sums + at, mask=there[:, None] & (channel < D)[None, :], other=0.0)


@triton.jit
def _offset(
    counts, sums, shift, parts, heads, channel, D: tl.constexpr, PARTS: tl.constexpr, SHIFTED: tl.constexpr
):  # fmt: skip
    """Add up how many tokens there are, and how far from the shift their mean is."""
    number = tl.zeros([PARTS], tl.float32)
    total = tl.zeros(shift.shape, tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        weight = tl.load(counts + part, mask=part < parts, other=0.0)
        number += weight
        own = _load_sums(sums, part.to(tl.int64) * heads, part < parts, channel, D)
        if not SHIFTED:
            own = weight[:, None] * (own - shift[None, :])
        total += tl.sum(own, 0)
    count = tl.sum(number, 0)
    return count, total / tl.maximum(count, 1.0)


@triton.jit
def merge_kernel(
    counts, shifts, sums, products, count, mean, scatter, parts, heads,
    D: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """Merge a block of one head's moments: those about a shift, or about their own means.

    For the latter, see Chan, Golub & LeVeque 1983; ``sums`` are the means then, and ``shifts`` a mean near
    them.
    """
    BLOCKS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    row = program // BLOCKS % BLOCKS
    column = program % BLOCKS
    head = program // (BLOCKS * BLOCKS)
    channel = row * BLOCK + tl.arange(0, BLOCK)
    other = column * BLOCK + tl.arange(0, BLOCK)
    sums += head.to(tl.int64) * D
    shift = tl.load(shifts + head * D + channel, mask=channel < D, other=0.0)
    other_shift = tl.load(shifts + head * D + other, mask=other < D, other=0.0)
    number, offset = _offset(counts, sums, shift, parts, heads, channel, D, PARTS, SHIFTED)
    _, other_offset = _offset(counts, sums, other_shift, parts, heads, other, D, PARTS, SHIFTED)

    there = (channel < D)[None, :, None] & (other < D)[None, None, :]
    places = (channel * D)[None, :, None] + other[None, None, :]
    second = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        place = part.to(tl.int64) * heads
        at = ((place + head) * D * D)[:, None, None] + places
        own = tl.load(products + at, mask=(part < parts)[:, None, None] & there, other=0.0)
        if not SHIFTED:
            root = tl.sqrt(tl.load(counts + part, mask=part < parts, other=0.0))[:, None]
            apart = _load_sums(sums, place, part < parts, channel, D) - (shift + offset)[None, :]
            other_apart = (
                _load_sums(sums, place, part < parts, other, D) - (other_shift + other_offset)[None, :]
            )
            own += (root * apart)[:, :, None] * (root * other_apart)[:, None, :]
        second += tl.sum(own, 0)
    if SHIFTED:
        second -= number * (offset[:, None] * other_offset[None, :])

    at = (head.to(tl.int64) * D + channel)[:, None] * D + other[None, :]
    tl.store(scatter + at, second, mask=(channel < D)[:, None] & (other < D)[None, :])
    if column == 0:
        tl.store(mean + head * D + channel, shift + offset, mask=channel < D)
    if program == 0:
        tl.store(count, number)
