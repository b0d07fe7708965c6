"""Triton kernels over token vectors: every vector is read once, and no sum needs an atomic."""

import triton
import triton.language as tl

from lightning_geo.kernels.triton.gram import multiply, place_of_head, split

__all__ = ["moments_kernel", "stream_kernel"]


@triton.jit
def _load_tokens(x, token, stride_n, channel, stride_d, mask):
    """Load [tokens, channels] in float32, 0 where not ``mask``; ``token`` is int64."""
    offsets = (token * stride_n)[:, None] + (channel.to(tl.int64) * stride_d)[None, :]
    return tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _add_directions(total, pointing, values, norm, real):
    """Add the unit vectors of real tokens to ``total``, and count those that have a direction."""
    points = real & (norm != 0)
    unit = values * (1.0 / tl.where(points, norm, 1.0))[:, None]
    total += tl.sum(tl.where(points[:, None], unit, 0.0), 0)
    return total, pointing + points.to(tl.float32)


@triton.jit
def _store_directions(sums, at, channel, total, pointing, D: tl.constexpr):
    """Store a sum of unit vectors, and behind it of how many, so that one operation adds up both."""
    tl.store(sums + at * (D + 1) + channel, total, mask=channel < D)
    tl.store(sums + at * (D + 1) + D, tl.sum(pointing, 0))


@triton.jit
def _store_shape(
    planes, plane, at, values, there, inside, defined, D: tl.constexpr, SKEWNESS: tl.constexpr,
    KURTOSIS: tl.constexpr,
):  # fmt: skip
    """Store the skewness and the excess kurtosis of each token's features."""
    mean = tl.sum(values, 1) / D
    deviation = tl.where(there, values - mean[:, None], 0.0)
    variance = tl.sum(deviation * deviation, 1) / D
    # equal features have no shape, and rounding of their mean must not give them one
    shaped = defined & (variance > (1e-6 * mean) * (1e-6 * mean))
    z = deviation * (1.0 / tl.sqrt(tl.where(shaped, variance, 1.0)))[:, None]
    square = z * z
    skewness = tl.sum(z * square, 1) / D
    kurtosis = tl.sum(square * square, 1) / D - 3.0
    if SKEWNESS >= 0:
        tl.store(planes + SKEWNESS * plane + at, tl.where(shaped, skewness, float("nan")), mask=inside)
    if KURTOSIS >= 0:
        tl.store(planes + KURTOSIS * plane + at, tl.where(shaped, kurtosis, float("nan")), mask=inside)


@triton.jit
def stream_kernel(
    x, x_b, x_n, x_d, before, before_b, before_n, before_d, mask, planes, finite, sums,
    tokens, chunks, plane,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, MASKED: tl.constexpr,
    NORM: tl.constexpr, SKEWNESS: tl.constexpr, KURTOSIS: tl.constexpr, UPDATE_RATIO: tl.constexpr,
    DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """Compute the statistics of a chunk of tokens of a sequence.

    ``NORM`` and the like are indices of planes, -1 for none.
    """
    program = tl.program_id(0)
    batch = (program // chunks).to(tl.int64)
    chunk = program % chunks
    channel = tl.arange(0, BLOCK_D)
    there = (channel < D)[None, :]
    total = tl.zeros([BLOCK_D], tl.float32)
    pointing = tl.zeros([ROWS], tl.float32)
    for step in range(STEPS):
        token = (chunk * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = token < tokens
        token64 = token.to(tl.int64)
        load = inside[:, None] & there
        values = _load_tokens(x + batch * x_b, token64, x_n, channel, x_d, load)
        at = batch * tokens + token64
        real = inside
        if MASKED:
            real = inside & (tl.load(mask + at, mask=inside, other=0) != 0)
        norm = tl.sqrt(tl.sum(values * values, 1))
        good = norm - norm == 0.0
        if UPDATE_RATIO >= 0:
            start = _load_tokens(before + batch * before_b, token64, before_n, channel, before_d, load)
            change = values - start
            length = tl.sqrt(tl.sum(start * start, 1))
            good = good & (length - length == 0.0)
            ratio = tl.sqrt(tl.sum(change * change, 1)) / length
            # 0 / 0 is NaN by itself, a change from nothing is not defined either
            ratio = tl.where(real & good & (length > 0), ratio, float("nan"))
            tl.store(planes + UPDATE_RATIO * plane + at, ratio, mask=inside)
        tl.store(finite + at, good.to(tl.int8), mask=inside)
        defined = real & good
        if NORM >= 0:
            tl.store(planes + NORM * plane + at, tl.where(defined, norm, float("nan")), mask=inside)
        if SKEWNESS >= 0 or KURTOSIS >= 0:
            _store_shape(planes, plane, at, values, there, inside, defined, D, SKEWNESS, KURTOSIS)
        if DIRECTIONS:
            total, pointing = _add_directions(total, pointing, values, norm, real)
    if DIRECTIONS:
        _store_directions(sums, program.to(tl.int64), channel, total, pointing, D)


@triton.jit
def moments_kernel(
    x, x_b, x_l, x_h, x_n, x_d, mask, norms, sums, counts, means, scatters, inner, heads, tokens, chunks,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, MASKED: tl.constexpr,
    NORM: tl.constexpr, DIRECTIONS: tl.constexpr, SCATTER: tl.constexpr,
    PARTS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute the moments of a chunk of tokens of one sequence and head, about their own mean.

    ``heads`` are those of all layers, of which each has ``inner``.
    """
    program = tl.program_id(0)
    # heads first: where they lie side by side, neighbouring programs share what is read together
    head = program % heads
    chunk = (program // heads) % chunks
    batch = ((program // heads) // chunks).to(tl.int64)
    x += batch * x_b + place_of_head(head, inner, x_l, x_h)
    channel = tl.arange(0, BLOCK_D)
    there = (channel < D)[None, :]
    total = tl.zeros([BLOCK_D], tl.float32)
    pointing = tl.zeros([ROWS], tl.float32)
    kept = tl.zeros([ROWS], tl.float32)
    shift = tl.zeros([BLOCK_D], tl.float32)
    first = tl.zeros([BLOCK_D], tl.float32)
    second = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
    for step in range(STEPS):
        token = (chunk * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = token < tokens
        token64 = token.to(tl.int64)
        real = inside
        if MASKED:
            real = inside & (tl.load(mask + batch * tokens + token64, mask=inside, other=0) != 0)
        # padding is not even read: it may hold anything
        values = _load_tokens(x, token64, x_n, channel, x_d, real[:, None] & there)
        if NORM or DIRECTIONS:
            norm = tl.sqrt(tl.sum(values * values, 1))
        if NORM:
            at = (batch * heads + head) * tokens + token64
            tl.store(norms + at, tl.where(real, norm, float("nan")), mask=inside)
        if DIRECTIONS:
            total, pointing = _add_directions(total, pointing, values, norm, real)
        if SCATTER:
            # about the mean of the first tokens: float32 would lose a small spread around a large mean
            if step == 0:
                shift = tl.sum(values, 0) / tl.maximum(tl.sum(real.to(tl.float32), 0), 1.0)
                if PARTS == 2:
                    shift, _ = split(shift, UPCAST)
                    shift = shift.to(tl.float32)
            centred = tl.where(real[:, None], values - shift[None, :], 0.0)
            kept += real.to(tl.float32)
            first += tl.sum(centred, 0)
            second += multiply(centred, centred, PARTS, UPCAST)
    if DIRECTIONS:
        at = (batch * chunks + chunk) * heads + head
        _store_directions(sums, at, channel, total, pointing, D)
    if SCATTER:
        count = tl.sum(kept, 0)
        offset = first / tl.maximum(count, 1.0)
        at = (batch * chunks + chunk) * heads + head
        tl.store(means + at * D + channel, shift + offset, mask=channel < D)
        second -= count * offset[:, None] * offset[None, :]
        places = at * D * D + (channel * D)[:, None] + channel[None, :]
        tl.store(scatters + places, second, mask=(channel < D)[:, None] & there)
        tl.store(counts + batch * chunks + chunk, count, mask=head == 0)
