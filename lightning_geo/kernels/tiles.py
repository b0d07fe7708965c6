"""Which part of the score matrices is in work: tiles, and the band that causality and windows leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_geo.kernels.problem import AttentionProblem

__all__ = ["Plan", "Tile", "band", "edges", "keys_in_band"]


# with more, the part of a causal tile right of the diagonal grows; with fewer, the matrix product suffers
_MOST_ROWS, _FEW_ROWS = 128, 16


class Tile(NamedTuple):
    """A block of the score matrices: sequences, query heads, query rows, key columns."""

    batch: slice
    heads: slice
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Its sizes."""
        batch, heads, rows, columns = (part.stop - part.start for part in self)
        return batch, heads, rows, columns


class Plan(NamedTuple):
    """How many sequences, key heads and rows a tile takes; its columns are all that its rows may see."""

    batch: int
    key_heads: int
    rows: int

    @classmethod
    def of(cls, problem: AttentionProblem, scores: int) -> Plan:
        """Fill about ``scores`` scores per tile: all heads of a sequence first, they share their mask."""
        batch, key_heads = problem.key.shape[:2]
        row = max(1, problem.group_size) * _widest(problem, _MOST_ROWS)
        rows = min(_MOST_ROWS, max(_FEW_ROWS, scores // (key_heads * row)), problem.query.shape[2])
        rows = max(1, min(rows, scores // row))
        fitting = max(1, scores // (row * rows))
        if fitting < key_heads:
            return cls(1, fitting, rows)
        return cls(max(1, min(batch, fitting // key_heads)), key_heads, rows)

    def scores(self, problem: AttentionProblem) -> int:
        """Scores in the largest tile."""
        return self.batch * self.key_heads * problem.group_size * self.rows * _widest(problem, self.rows)

    def groups(self, problem: AttentionProblem) -> Iterator[tuple[slice, slice]]:
        """Sequences and key heads, a group at a time."""
        batch, key_heads = problem.key.shape[:2]
        for b in range(0, batch, self.batch):
            for h in range(0, key_heads, self.key_heads):
                yield slice(b, min(b + self.batch, batch)), slice(h, min(h + self.key_heads, key_heads))


def _widest(problem: AttentionProblem, rows: int) -> int:
    """The most columns that ``rows`` rows may see together."""
    if problem.left is None or problem.right is None:
        return problem.keys
    return min(problem.keys, problem.left + problem.right + rows)


def band(problem: AttentionProblem, rows: slice) -> slice:
    """Columns that any of the rows may see as far as causality and window go."""
    start, stop = 0, problem.keys
    if problem.left is not None:
        start = max(start, rows.start + problem.offset - problem.left)
    if problem.right is not None:
        stop = min(stop, rows.stop + problem.offset + problem.right)
    return slice(min(start, stop), stop) if stop > 0 else slice(0, 0)


def edges(problem: AttentionProblem, tile: Tile) -> Iterator[slice]:
    """Parts of a tile's columns in which causality or window hide keys from some rows only."""
    if problem.left is not None:
        inner = tile.rows.stop - 1 + problem.offset - problem.left
        if inner > tile.columns.start:
            yield slice(tile.columns.start, min(inner, tile.columns.stop))
    if problem.right is not None:
        inner = tile.rows.start + problem.offset + problem.right + 1
        if inner < tile.columns.stop:
            yield slice(max(inner, tile.columns.start), tile.columns.stop)


def keys_in_band(problem: AttentionProblem) -> Tensor:
    """How many keys causality and window leave to each row: float32 ``[Nq]``."""
    position = torch.arange(problem.rows_shape[2], device=problem.query.device) + problem.offset
    start = torch.zeros_like(position) if problem.left is None else (position - problem.left).clamp(min=0)
    last = torch.full_like(position, problem.keys - 1)
    if problem.right is not None:
        last = torch.minimum(last, position + problem.right)
    return (last + 1 - start).clamp(min=0).to(torch.float32)
