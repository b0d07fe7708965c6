"""Second moments of wide vectors on tensor cores, with the digits of float32.

Tensor cores multiply bfloat16 numbers exactly and add the products in float32. A number d, less a shift near
its mean, is split into bfloat16 parts d = a + b + c, each the rounded rest of those before it. The products
aa' + ab' + ba' + bb' + ac' + ca' keep float32's digits: those left out are below 2^-24 of dd'. Half precision
does without c, since its shift is a bfloat16 number: a difference of two such numbers has at most 16 bits,
unless one is above 2^8 times the other, and then c is below 2^-16 of it. Four (six) such products take as
long as two (three) of TF32.
"""

import triton
import triton.language as tl

__all__ = ["gram_kernel", "is_real", "load_vectors", "multiply", "place_of_head", "shift_of", "split"]


@triton.jit
def place_of_head(head, inner, x_l, x_h):
    """Find the vectors of a head that is counted through all layers, of which each has ``inner``."""
    return (head // inner).to(tl.int64) * x_l + (head % inner).to(tl.int64) * x_h


@triton.jit
def _place(x, token, tokens, x_b, x_n):
    """Point to the vectors of tokens that are counted through all sequences."""
    return x + (token // tokens).to(tl.int64) * x_b + (token % tokens).to(tl.int64) * x_n


@triton.jit
def load_vectors(vectors, channel, x_d, real, D: tl.constexpr):
    """Load [tokens, channels] in float32, 0 where a token is not ``real``: padding may hold anything."""
    pointers = vectors[:, None] + (channel.to(tl.int64) * x_d)[None, :]
    return tl.load(pointers, mask=real[:, None] & (channel < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def is_real(token, total, mask, MASKED: tl.constexpr):
    real = token < total
    if MASKED:
        real = real & (tl.load(mask + token, mask=real, other=0) != 0)
    return real


@triton.jit
def split(values, UPCAST: tl.constexpr):
    """Split off what bfloat16 holds of some values; returns it and the rest."""
    if UPCAST:  # the interpreter cuts off what bfloat16 rounds (Veltkamp's splitting rounds)
        scaled = values * 65537.0
        part = scaled - (scaled - values)
    else:
        part = values.to(tl.bfloat16)
    return part, values - part.to(tl.float32)


@triton.jit
def shift_of(
    x, x_b, x_n, x_d, mask, tokens, total, channel, D: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
    PARTS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Estimate the mean of all tokens from ROWS of them."""
    # steps of the golden ratio spread over all sequences: neither padding nor first tokens alone are met
    place = tl.arange(0, ROWS).to(tl.float32) * 0.6180339887
    token = tl.minimum(((place - tl.floor(place)) * total).to(tl.int32), total - 1)
    real = is_real(token, total, mask, MASKED)
    values = load_vectors(_place(x, token, tokens, x_b, x_n), channel, x_d, real, D)
    mean = tl.sum(values, 0) / tl.maximum(tl.sum(real.to(tl.float32), 0), 1.0)
    if PARTS == 2:
        mean, _ = split(mean, UPCAST)
    return mean.to(tl.float32)


@triton.jit
def multiply(left, right, PARTS: tl.constexpr, UPCAST: tl.constexpr):
    """Multiply [tokens, m] and [tokens, n] to [m, n], smallest products first."""
    a, rest = split(left, UPCAST)
    other_a, other_rest = split(right, UPCAST)
    b, rest = split(rest, UPCAST)
    other_b, other_rest = split(other_rest, UPCAST)
    product = tl.dot(tl.trans(b), other_b)
    if PARTS == 3:
        c, rest = split(rest, UPCAST)
        other_c, other_rest = split(other_rest, UPCAST)
        product = tl.dot(tl.trans(a), other_c, product)
        product = tl.dot(tl.trans(c), other_a, product)
    product = tl.dot(tl.trans(a), other_b, product)
    product = tl.dot(tl.trans(b), other_a, product)
    return tl.dot(tl.trans(a), other_a, product)


@triton.jit
def gram_kernel(
    x, x_b, x_l, x_h, x_n, x_d, mask, counts, shifts, sums, products, inner, heads, tokens, total, steps,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr, PARTS: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute a block of the second moments of a chunk of tokens about a shift, and its mirror image."""
    BLOCKS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    # blocks on and above the diagonal, row by row
    column = program % (BLOCKS * (BLOCKS + 1) // 2)
    row = 0
    for size in tl.static_range(BLOCKS, 0, -1):
        below = (row == BLOCKS - size) & (column >= size)
        row = tl.where(below, row + 1, row)
        column = tl.where(below, column - size, column)
    column += row
    program = program // (BLOCKS * (BLOCKS + 1) // 2)
    head = program % heads
    chunk = program // heads
    x += place_of_head(head, inner, x_l, x_h)
    channel = row * BLOCK + tl.arange(0, BLOCK)
    other = column * BLOCK + tl.arange(0, BLOCK)
    # float32 would lose a small spread around a large mean
    shift = shift_of(x, x_b, x_n, x_d, mask, tokens, total, channel, D, ROWS, MASKED, PARTS, UPCAST)
    other_shift = shift_of(x, x_b, x_n, x_d, mask, tokens, total, other, D, ROWS, MASKED, PARTS, UPCAST)

    kept = tl.zeros([ROWS], tl.float32)
    first = tl.zeros([BLOCK], tl.float32)
    second = tl.zeros([BLOCK, BLOCK], tl.float32)
    for step in range(steps):
        token = (chunk * steps + step) * ROWS + tl.arange(0, ROWS)
        real = is_real(token, total, mask, MASKED)
        vectors = _place(x, token, tokens, x_b, x_n)
        left = tl.where(real[:, None], load_vectors(vectors, channel, x_d, real, D) - shift[None, :], 0.0)
        right = tl.where(
            real[:, None], load_vectors(vectors, other, x_d, real, D) - other_shift[None, :], 0.0
        )
        kept += real.to(tl.float32)
        first += tl.sum(left, 0)
        # tensor cores cut off what they add: their sums stay short
        second += multiply(left, right, PARTS, UPCAST)

    at = program.to(tl.int64)
    there = (channel < D)[:, None] & (other < D)[None, :]
    places = products + at * D * D
    tl.store(places + channel[:, None] * D + other[None, :], second, mask=there)
    if row != column:
        tl.store(places + other[None, :] * D + channel[:, None], second, mask=there)
    else:
        tl.store(shifts + head * D + channel, shift, mask=channel < D)
        tl.store(sums + at * D + channel, first, mask=channel < D)
        tl.store(counts + chunk, tl.sum(kept, 0))
