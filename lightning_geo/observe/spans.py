"""Where documents begin and end in packed rows, each source of evidence a function on host arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Spans", "from_cumulative", "from_numbers", "from_positions", "is_packed"]

Array = NDArray[np.int64]

#: Documents as [start, stop) of token indices, rows laid one after the other: ``row * N + column``.
Spans = list[tuple[int, int]]


def from_cumulative(cumulative: Array, total: int, *, exact: bool = True) -> Spans | None:
    """Documents by cumulative lengths, as FlashAttention's ``cu_seqlens``: 0, n₁, n₁ + n₂, ...

    Args:
        cumulative: ``[documents + 1]``, or ``[1, documents + 1]``.
        total: Tokens of all rows.
        exact: Whether they must cover every token; else what lies behind the last belongs to none.

    Returns:
        One span per document, empty ones included; ``None`` where these are no such lengths.
    """
    bounds = cumulative.reshape(-1)
    if bounds.size != cumulative.shape[-1] or bounds.size < 2:
        return None
    if bounds[0] != 0 or (np.diff(bounds) < 0).any():
        return None
    if bounds[-1] > total or (exact and bounds[-1] != total):
        return None
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def from_numbers(numbers: Array, *, is_mask: bool) -> Spans | None:
    """Documents by a number for each token: a run of one number is a document.

    Args:
        numbers: ``[B, N]``.
        is_mask: Whether the argument is called a mask, in which 0 is padding and 1 alone says nothing
            of documents. In others (``seq_idx``) 0 is a document if every row begins with it and none
            comes back to it; negative numbers are padding in both.

    Returns:
        One span per document; ``None`` where nothing tells documents apart.
    """
    real = numbers >= 0
    returns_to_zero = ((numbers[:, 1:] == 0) & (numbers[:, :-1] != 0)).any()
    if is_mask or returns_to_zero or not (numbers[:, :1] == 0).all():
        real = numbers > 0
    if not real.any() or (is_mask and numbers.max() <= 1):
        return None
    return _runs(_changes(numbers), real)


def from_positions(positions: Array, real: NDArray[np.bool_] | None, *, planes: int = 1) -> Spans | None:
    """Documents by position ids: one begins where the position does not go up.

    Where a padding mask is given it alone says which tokens are real: transformers fills the positions of
    padded ones with 0 or 1. Without it, padding shows as one position that is repeated, and is no position
    at which documents begin; documents of one token look the same but repeat the lowest position.

    Args:
        positions: ``[B, N]``.
        real: ``[B, N]``, False = padding; ``None`` where no mask was given.
        planes: How many planes the position ids have of which this is the first. The temporal plane of three
            (mrope) stands still within an image, so that only a step back begins a document there.

    Returns:
        One span per document; ``None`` where no token is real.
    """
    stands_still = planes == 3
    if real is None:
        real = positions >= 0
        if not stands_still and real.any():
            real = real & ~_filled(positions, int(positions[real].min()))
    if not real.any():
        return None
    batch, length = positions.shape
    columns = np.where(real, np.arange(length), -1)
    before = np.maximum.accumulate(columns, axis=1)
    before = np.concatenate([np.full((batch, 1), -1), before[:, :-1]], axis=1)  # the real token before
    last = np.take_along_axis(positions, np.maximum(before, 0), axis=1)
    back = positions < last if stands_still else positions <= last
    starts = real & ((before < 0) | back)
    return _runs(starts, real)


def is_packed(spans: Spans, length: int) -> bool:
    """Whether any row of that length holds more than one document, or any document goes beyond its row."""
    rows = [(start // length, (stop - 1) // length) for start, stop in spans if stop > start]
    firsts = [first for first, _ in rows]
    return len(set(firsts)) < len(firsts) or any(first != last for first, last in rows)


def _changes(numbers: Array) -> NDArray[np.bool_]:
    first = np.ones((numbers.shape[0], 1), dtype=bool)
    return np.concatenate([first, numbers[:, 1:] != numbers[:, :-1]], axis=1)


def _filled(positions: Array, lowest: int) -> NDArray[np.bool_]:
    """Tokens whose position repeats the one before, and at a row's start the one that is repeated too."""
    repeats: NDArray[np.bool_] = ~_changes(positions) & (positions != lowest)
    leading = np.logical_and.accumulate(positions == positions[:, :1], axis=1)
    repeats |= leading & repeats[:, 1:2].any(axis=1, keepdims=True)
    return repeats


def _runs(starts: NDArray[np.bool_], real: NDArray[np.bool_]) -> Spans:
    """From each start to the last real token before the next, of those that begin with a real token."""
    batch, length = real.shape
    begin = np.flatnonzero(starts)
    end = np.append(begin[1:], batch * length)
    row_end = (begin // length + 1) * length
    tokens = np.flatnonzero(real)
    # behind the last real token of a document lies padding, up to the next document or the row's end
    last = tokens[np.maximum(np.searchsorted(tokens, np.minimum(end, row_end)) - 1, 0)]
    kept = real.reshape(-1)[begin]
    return list(zip(begin[kept].tolist(), (last[kept] + 1).tolist(), strict=True))
