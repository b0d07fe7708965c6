"""Finds where documents begin and end in packed rows; one function on host arrays per kind of evidence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Spans", "from_cumulative", "from_numbers", "from_positions", "is_packed"]

Array = NDArray[np.int64]

#: Documents as [start, stop) of token indices, rows laid one after the other: ``row * N + column``.
Spans = list[tuple[int, int]]


def from_cumulative(cumulative: Array, total: int, *, exact: bool = True) -> Spans | None:
    """Find documents by cumulative lengths, such as FlashAttention's ``cu_seqlens``: 0, n₁, n₁ + n₂, ...

    Args:
        cumulative: ``[documents + 1]``, or ``[1, documents + 1]``.
        total: Tokens of all rows.
        exact: Whether they must cover every token; otherwise tokens after the last document belong to none.

    Returns:
        One span per document, empty ones included; ``None`` if these are no cumulative lengths.
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
    """Find documents by a number for each token: a run of equal numbers is a document.

    Args:
        numbers: ``[B, N]``.
        is_mask: Whether the argument is named a mask, in which 0 is padding; one of 0 and 1 only describes no
            documents. In other arguments (``seq_idx``) 0 is a document if every row begins with it and no row
            returns to it. Negative numbers are padding in both.

    Returns:
        One span per document; ``None`` if the numbers describe no documents.
    """
    real = numbers >= 0
    returns_to_zero = ((numbers[:, 1:] == 0) & (numbers[:, :-1] != 0)).any()
    if is_mask or returns_to_zero or not (numbers[:, :1] == 0).all():
        real = numbers > 0
    if not real.any() or (is_mask and numbers.max() <= 1):
        return None
    return _runs(_changes(numbers), real)


def from_positions(positions: Array, real: NDArray[np.bool_] | None, *, planes: int = 1) -> Spans | None:
    """Find documents by position ids: one begins wherever the position does not increase.

    A padding mask decides which tokens are real, since transformers fills padded positions with 0 or 1.
    Without a mask, a repeated position is padding, unless it is the lowest position: that one begins
    documents, and repeats in documents of one token.

    Args:
        positions: ``[B, N]``.
        real: ``[B, N]``, False for padding; ``None`` without a mask.
        planes: Number of planes of the position ids; ``positions`` is the first plane. With three planes
            (mrope) it is temporal and constant within an image, so that only a decrease begins a document.

    Returns:
        One span per document; ``None`` if no token is real.
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
    """Whether some row of that length holds several documents, or some document crosses a row's end."""
    rows = [(start // length, (stop - 1) // length) for start, stop in spans if stop > start]
    firsts = [first for first, _ in rows]
    return len(set(firsts)) < len(firsts) or any(first != last for first, last in rows)


def _changes(numbers: Array) -> NDArray[np.bool_]:
    first = np.ones((numbers.shape[0], 1), dtype=bool)
    return np.concatenate([first, numbers[:, 1:] != numbers[:, :-1]], axis=1)


def _filled(positions: Array, lowest: int) -> NDArray[np.bool_]:
    """Find tokens that repeat the position before, and a row's first token if the second repeats it."""
    repeats: NDArray[np.bool_] = ~_changes(positions) & (positions != lowest)
    leading = np.logical_and.accumulate(positions == positions[:, :1], axis=1)
    repeats |= leading & repeats[:, 1:2].any(axis=1, keepdims=True)
    return repeats


def _runs(starts: NDArray[np.bool_], real: NDArray[np.bool_]) -> Spans:
    """Return spans from each start that is a real token to the last real token before the next start."""
    batch, length = real.shape
    begin = np.flatnonzero(starts)
    end = np.append(begin[1:], batch * length)
    row_end = (begin // length + 1) * length
    tokens = np.flatnonzero(real)
    # Padding fills the gap from a document's last real token to the next document or the row's end.
    last = tokens[np.maximum(np.searchsorted(tokens, np.minimum(end, row_end)) - 1, 0)]
    kept = real.reshape(-1)[begin]
    return list(zip(begin[kept].tolist(), (last[kept] + 1).tolist(), strict=True))
