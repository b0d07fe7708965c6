"""Sums of tokens with random signs on tensor cores, with the digits of float32.

A sign is a bfloat16 number, and a token less a shift is the sum of three (see ``gram``): their products are
exact.
"""

import triton
import triton.language as tl

from lightning_geo.kernels.triton.gram import is_real, load_vectors, shift_of, split

__all__ = ["sketch_kernel"]


@triton.jit
def sketch_kernel(
    x, x_n, x_l, x_d, mask, draws, sketches, signs, tokens,
    D: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
    CONTINUES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute a block of one layer's sketch of COUNT rows, and at its first features the sums of signs.

    ``draws`` are 0 or 1, float32 ``[L, COUNT, tokens]``. A sketch that continues is added to.
    """
    BLOCKS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    SLICES: tl.constexpr = (COUNT + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    layer = (program // (BLOCKS * SLICES)).to(tl.int64)
    row = program // BLOCKS % SLICES * BLOCK + tl.arange(0, BLOCK)
    channel = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    x += layer * x_l
    # float32 would lose a small spread around a large mean
    shift = shift_of(x, 0, x_n, x_d, mask, tokens, tokens, channel, D, ROWS, MASKED, 3, UPCAST)
    own = layer * COUNT + row
    total = tl.zeros([BLOCK], tl.float32)
    result = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, tokens, ROWS):
        token = start + tl.arange(0, ROWS)
        real = is_real(token, tokens, mask, MASKED)
        values = load_vectors(x + token.to(tl.int64) * x_n, channel, x_d, real, D)
        centred = tl.where(real[:, None], values - shift[None, :], 0.0)
        at = (own * tokens)[:, None] + token[None, :]
        sign = 2.0 * tl.load(draws + at, mask=(row < COUNT)[:, None] & real[None, :], other=0.5) - 1.0
        total += tl.sum(sign, 1)
        a, rest = split(centred, UPCAST)
        b, rest = split(rest, UPCAST)
        c, rest = split(rest, UPCAST)
        sign = sign.to(a.dtype)
        # tensor cores cut off what they add: their sums stay short
        result += tl.dot(sign, a, tl.dot(sign, b, tl.dot(sign, c)))

    result += total[:, None] * shift[None, :]
    there = (row < COUNT)[:, None] & (channel < D)[None, :]
    at = (own * D)[:, None] + channel[None, :]
    if CONTINUES:
        result += tl.load(sketches + at, mask=there, other=0.0)
    tl.store(sketches + at, result, mask=there)
    if program % BLOCKS == 0:
        tl.store(signs + own, total, mask=row < COUNT)
