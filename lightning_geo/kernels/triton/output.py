"""The output of the finish kernel: statistics, one plane each, and the softmax."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lightning_geo.kernels.triton.scores import HIDDEN, exponents

__all__ = ["Output", "count_band", "load_sum", "store_plane", "store_softmax", "store_sums"]

_LN2 = tl.constexpr(0.6931471805599453)


class Output(NamedTuple):
    """The place of a block of rows: its offsets in a plane, rows that exist and rows that have statistics."""

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
        at = tl.full([], INDEX, tl.int64) * output.plane + output.offsets
        tl.store(output.planes + at, values, mask=output.inside)


@triton.jit
def load_sum(sums, plane, offsets, inside, INDEX: tl.constexpr):
    """Load what the rows kernel left of each row; 0 for an INDEX of -1, a sum that is known to be empty."""
    values = tl.zeros(offsets.shape, tl.float32)
    if INDEX >= 0:
        values = tl.load(sums + (tl.full([], INDEX, tl.int64) * plane + offsets), mask=inside, other=0.0)
    return values


@triton.jit
def _store_mass(output, sums, share, SUM: tl.constexpr, INDEX: tl.constexpr):
    """Store a sum, divided by the whole mass."""
    if INDEX >= 0:
        values = load_sum(sums, output.plane, output.offsets, output.inside, SUM)
        store_plane(output, values * share, INDEX)


@triton.jit
def store_sums(
    output, sums, peak, base, mass, spread, sink, scoring,
    RULES: tl.constexpr, PLANES: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Store the statistics that follow from a row's sums."""
    share = 1.0 / mass
    logsumexp = base + tl.log2(mass) * _LN2 if RULES.scaled else (base + tl.log2(mass)) * _LN2
    store_plane(output, logsumexp, PLANES.logsumexp)
    entropy = (tl.log2(mass) + spread * share) * _LN2
    store_plane(output, tl.maximum(entropy, 0.0), PLANES.entropy)
    top = tl.minimum(tl.exp2(exponents(peak, base, scoring.factor, RULES.scaled)) * share, 1.0)
    store_plane(output, top, PLANES.max_probability)
    store_plane(output, peak if RULES.scaled else peak * scoring.scale, PLANES.max_logit)
    _store_mass(output, sums, share * share, SUMS.squares, PLANES.concentration)
    _store_mass(output, sums, share, SUMS.before, PLANES.backward_mass)
    _store_mass(output, sums, share, SUMS.after, PLANES.forward_mass)
    _store_mass(output, sums, share, SUMS.distance, PLANES.attention_distance)
    _store_mass(output, sums, share, SUMS.marked, PLANES.special_mass)
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
    tl.store(damaged + tl.zeros_like(output.offsets), 1, mask=alive & ~output.defined)


@triton.jit
def count_band(rows, sizes, RULES: tl.constexpr):
    """Count the keys that causality and window leave to each row."""
    nearest = tl.zeros_like(rows.position)
    farthest = nearest + (sizes.keys - 1)
    if RULES.left:
        nearest = tl.maximum(rows.position - sizes.left, 0)
    if RULES.right != 0:
        farthest = tl.minimum(rows.position + sizes.right, sizes.keys - 1)
    return tl.maximum(farthest - nearest + 1, 0).to(tl.float32)
