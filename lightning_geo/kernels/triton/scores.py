"""From vectors to masked scores and exponents: code shared by the passes over keys and over queries."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.triton.masks import BOOL_MASK, HIDDEN_SCORE

__all__ = [
    "BOOL",
    "HIDDEN",
    "Scoring",
    "apply_key_row",
    "apply_mask",
    "base_of",
    "exponents",
    "in_band",
    "load_vectors",
    "masked_scores",
    "multiply",
    "sum_classes",
]

HIDDEN = tl.constexpr(HIDDEN_SCORE)
BOOL = tl.constexpr(BOOL_MASK)
_LOG2E = tl.constexpr(1.4426950408889634)

_HIDDEN_BELOW = tl.constexpr(HIDDEN_BELOW)


class Scoring(NamedTuple):
    """Arguments that turn the dot products of one head into scores. Pointers are those of the head.

    Compile-time constants are in ``Rules`` instead: a tuple that is assigned to a name inside a kernel loses
    its constants.
    """

    key_row: Any
    mask_a: Any
    a_q: Any
    a_k: Any
    mask_b: Any
    b_q: Any
    b_k: Any
    left: Any
    right: Any
    scale: Any
    softcap: Any
    factor: Any


@triton.jit
def _load_block(
    x, index, stride_n, stride_d, inside, START: tl.constexpr, BLOCK: tl.constexpr, DOTS: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    channels = START + tl.arange(0, BLOCK)
    pointers = x + (index * stride_n)[:, None] + channels[None, :] * stride_d
    WHOLE: tl.constexpr = DOTS.width >= START + BLOCK
    if CHECK and not WHOLE:
        values = tl.load(pointers, mask=inside[:, None] & (channels < DOTS.width)[None, :], other=0.0)
    elif CHECK:
        values = tl.load(pointers, mask=inside[:, None], other=0.0)
    elif not WHOLE:
        values = tl.load(pointers, mask=(channels < DOTS.width)[None, :], other=0.0)
    else:
        values = tl.load(pointers)
    return values.to(tl.float32) if DOTS.upcast else values


@triton.jit
def load_vectors(x, index, stride_n, stride_d, inside, DOTS: tl.constexpr, CHECK: tl.constexpr):
    """Load the vectors at some int64 indices, a tuple of one or two blocks of their features.

    They are 0 beyond their width and, with CHECK, where not ``inside``.
    """
    first = _load_block(x, index, stride_n, stride_d, inside, 0, DOTS.blocks[0], DOTS, CHECK)
    if DOTS.split:
        second = _load_block(
            x, index, stride_n, stride_d, inside, DOTS.blocks[0], DOTS.blocks[1], DOTS, CHECK
        )
        return first, second
    else:
        return (first,)


@triton.jit
def multiply(a, b, s, DOTS: tl.constexpr):
    """Add to ``s`` the dot products of vectors, each as :func:`load_vectors` returns them."""
    s = tl.dot(a[0], tl.trans(b[0]), s, input_precision=DOTS.precision)
    if DOTS.split:
        s = tl.dot(a[1], tl.trans(b[1]), s, input_precision=DOTS.precision)
    return s


@triton.jit
def _scaled_scores(dots, scoring, RULES: tl.constexpr):
    """Turn dot products into scores before masks; bare ones stay, their scale is in the exponent's factor.

    With a cap, ``scale`` is divided by it.
    """
    if RULES.scaled:
        dots = dots * scoring.scale
    if RULES.capped:
        # tanh from 2^-|x|: no overflow, and infinite scores end at the cap
        decay = tl.exp2(tl.abs(dots) * (-2.0 * _LOG2E))
        bent = scoring.softcap * (1.0 - decay) / (1.0 + decay)
        dots = tl.where(dots < 0, -bent, bent)
    return dots


@triton.jit
def apply_key_row(scores, values, KIND: tl.constexpr):
    """Apply the masks that all rows share: ``values`` broadcast to scores, ``HIDDEN`` for a hidden key."""
    if KIND == 1:
        scores = tl.where(values == HIDDEN, HIDDEN, scores)
    elif KIND == 2:
        scores = tl.where(values == HIDDEN, HIDDEN, scores + values)
    return scores


@triton.jit
def apply_mask(
    scores,
    mask,
    rows,
    columns,
    stride_row,
    stride_column,
    KIND: tl.constexpr,
    PER_ROW: tl.constexpr,
    GUARD: tl.constexpr,
):
    """Add a mask to scores; ``rows`` and ``columns`` are valid int64 indices that broadcast to them.

    With ``GUARD`` scores may be hidden already and stay so, whatever the mask holds.
    """
    if KIND != 0:
        offsets = columns * stride_column
        if PER_ROW:
            offsets = offsets + rows * stride_row
        values = tl.load(mask + offsets)
        if KIND == BOOL:
            scores = tl.where(values != 0, scores, HIDDEN)
        else:
            values = values.to(tl.float32)
            # a NaN hides nothing: it has to reach the row's statistics
            hidden = values <= _HIDDEN_BELOW
            if GUARD:
                hidden = hidden | (scores == HIDDEN)
            scores = tl.where(hidden, HIDDEN, scores + values)
    return scores


@triton.jit
def in_band(positions, columns, scoring, RULES: tl.constexpr):
    """Find the columns that causality and window leave to positions; only where one of the two is on."""
    if RULES.left and RULES.right != 0:
        return (columns >= positions - scoring.left) & (columns <= positions + scoring.right)
    elif RULES.left:
        return columns >= positions - scoring.left
    else:
        return columns <= positions + scoring.right


@triton.jit
def _spread(x, AXIS: tl.constexpr):
    """Lay a vector along an axis of [M, N]; -1 leaves it."""
    if AXIS == 0:
        x = x[:, None]
    elif AXIS == 1:
        x = x[None, :]
    return x


@triton.jit
def masked_scores(
    dots,
    veil,
    row,
    position,
    column,
    index,
    scoring,
    RULES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BAND: tl.constexpr,
    VEILED: tl.constexpr,
):
    """Turn dot products into scores, ``HIDDEN`` where any mask hides the key.

    ``row`` (int64) and ``position`` go along the axis QUERIES of ``dots``, ``column`` and ``index``, the same
    in int64 and clamped to keys that exist, along KEYS; -1 for both where each score has a row and a key of
    its own. With VEILED the first mask is in ``dots`` already: ``veil`` is ``HIDDEN`` where it hides. Without
    BAND causality and window are known to hide nothing.
    """
    s = _scaled_scores(dots, scoring, RULES)
    if VEILED:
        s = tl.where(veil == HIDDEN, HIDDEN, s)
    if RULES.key_row != 0:
        values = _spread(tl.load(scoring.key_row + column), KEYS)
        # hidden scores stay hidden under a bias, unless the bias is NaN
        hide = apply_key_row(s, values, RULES.key_row)
        s = tl.where(s == HIDDEN, HIDDEN, hide) if VEILED and RULES.key_row == 2 else hide
    rows = _spread(row, QUERIES)
    columns = _spread(index, KEYS)
    if not VEILED:
        s = apply_mask(
            s, scoring.mask_a, rows, columns, scoring.a_q, scoring.a_k, RULES.a, RULES.a_rows,
            GUARD=RULES.key_row != 0,
        )  # fmt: skip
    s = apply_mask(
        s, scoring.mask_b, rows, columns, scoring.b_q, scoring.b_k, RULES.b, RULES.b_rows, GUARD=True
    )
    if BAND and (RULES.left or RULES.right != 0):
        visible = in_band(_spread(position, QUERIES), _spread(column, KEYS), scoring, RULES)
        s = tl.where(visible, s, HIDDEN)
    return s


@triton.jit
def base_of(peak, factor, SCALED: tl.constexpr):
    """Return the offset that :func:`exponents` subtract from scores."""
    return peak if SCALED else peak * factor


@triton.jit
def exponents(s, base, factor, SCALED: tl.constexpr):
    """Exponents of 2: 0 at the peak, but for the rounding of ``base``."""
    return (s - base) * factor if SCALED else tl.fma(s, factor, -base)


@triton.jit
def sum_classes(values, M: tl.constexpr, N: tl.constexpr):
    """Sum [M, N] over the columns of each class: [M, 8]."""
    return tl.sum(tl.reshape(values, [M, N // 8, 8]), 1)
