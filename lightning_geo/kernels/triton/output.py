"""What the rows kernel writes once all tiles are summed: statistics, one plane each, and the softmax."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lightning_geo.kernels.triton.scores import HIDDEN, exponents

__all__ = ["Output", "count_band", "store_plane", "store_softmax", "store_sums"]

_LN2 = tl.constexpr(0.6931471805599453)


class Output(NamedTuple):
    """Where a block of rows writes: its offsets in a plane, which rows exist and which have statistics."""

    planes: Any
    plane: Any
    offsets: Any
    inside: Any
    defined: Any


@triton.jit
def store_plane(output, values, INDEX: tl.constexpr):
    """Store one statistic, NaN in rows without it; nothing for an INDEX of -1."""
    if INDEX >= 0:
        values = tl.where(output.defined, values, float("nan"))
        tl.store(output.planes + output.plane * INDEX + output.offsets, values, mask=output.inside)


@triton.jit
def store_sums(output, state, base, mass, spread, sink, scoring, RULES: tl.constexpr, PLANES: tl.constexpr):
    """Store the statistics that follow from a row's sums."""
    share = 1.0 / mass
    logsumexp = base + tl.log2(mass) * _LN2 if RULES.scaled else (base + tl.log2(mass)) * _LN2
    store_plane(output, logsumexp, PLANES.logsumexp)
    entropy = (tl.log2(mass) + spread * share) * _LN2
    store_plane(output, tl.maximum(entropy, 0.0), PLANES.entropy)
    if PLANES.concentration >= 0:
        store_plane(output, tl.sum(state.squares, 1) * share * share, PLANES.concentration)
    top = tl.minimum(tl.exp2(exponents(state.peak, base, scoring.factor, RULES.scaled)) * share, 1.0)
    store_plane(output, top, PLANES.max_probability)
    store_plane(output, state.peak if RULES.scaled else state.peak * scoring.scale, PLANES.max_logit)
    if PLANES.sides:
        store_plane(output, tl.sum(state.before, 1) * share, PLANES.backward_mass)
        store_plane(output, tl.sum(state.after, 1) * share, PLANES.forward_mass)
    if PLANES.attention_distance >= 0:
        store_plane(output, tl.sum(state.distance, 1) * share, PLANES.attention_distance)
    if PLANES.special_mass >= 0:
        store_plane(output, tl.sum(state.marked, 1) * share, PLANES.special_mass)
    if PLANES.learned_sink_mass >= 0:
        logit = tl.load(sink).to(tl.float32)
        store_plane(output, 1.0 / (1.0 + tl.exp(logsumexp - logit)), PLANES.learned_sink_mass)


@triton.jit
def store_softmax(softmax, damaged, output, base, mass, alive):
    """Store what the pass over the queries needs of each row; flag the head if a row is not finite."""
    # the base of a row without statistics is far above any score, so that it gives nothing
    tl.store(softmax + output.offsets, tl.where(output.defined, base, -HIDDEN), mask=output.inside)
    share = tl.where(output.defined, 1.0 / mass, 0.0)
    tl.store(softmax + output.plane + output.offsets, share, mask=output.inside)
    broken = tl.max((alive & ~output.defined).to(tl.int32), 0)
    tl.store(damaged, 1, mask=broken != 0)


@triton.jit
def count_band(rows, keys, left, right, RULES: tl.constexpr, BLOCK_M: tl.constexpr):
    """Count the keys that causality and window leave to each row."""
    nearest = tl.zeros([BLOCK_M], tl.int32)
    farthest = nearest + (keys - 1)
    if RULES.left:
        nearest = tl.maximum(rows.position - left, 0)
    if RULES.right != 0:
        farthest = tl.minimum(rows.position + right, keys - 1)
    return tl.maximum(farthest - nearest + 1, 0).to(tl.float32)
