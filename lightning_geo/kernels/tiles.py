"""Parts of the score matrices: measured rows, tiles, and the band that causality and windows leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_geo.kernels.problem import AttentionProblem
from lightning_geo.utils.shapes import Shaped

__all__ = ["Plan", "Rows", "Tile"]


# more rows waste work right of the diagonal of a causal tile; fewer make the matrix product slow
_MOST_ROWS, _FEW_ROWS = 128, 16


class Tile(NamedTuple):
    """A block of the score matrices: sequences, query heads, query rows, key columns."""

    batch: slice
    heads: slice
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sizes of the block along each axis."""
        batch, heads, rows, columns = (part.stop - part.start for part in self)
        return batch, heads, rows, columns


class Rows:
    """The query rows that are measured, by ascending key position in each sequence.

    Args:
        problem: The call; all of its rows if it chooses none.
    """

    def __init__(self, problem: AttentionProblem) -> None:
        self._problem = problem
        self.count = problem.rows_shape[2]
        self.indices: Tensor | None = None
        self._order: Tensor | None = None
        device = problem.query.device
        if problem.rows is None:
            #: key positions [B or 1, rows]
            self.positions = (torch.arange(self.count, device=device) + problem.offset)[None]
            self._lowest: Sequence[int] = range(problem.offset, problem.offset + self.count)
            self._highest: Sequence[int] = self._lowest
        else:
            self.indices, self._order = problem.rows.sort(dim=1)
            self.positions = self.indices + problem.offset
            any_row = self.indices.numel() > 0  # an empty axis has no minimum
            self._lowest = self.positions.amin(0).tolist() if any_row else [0] * self.count
            self._highest = self.positions.amax(0).tolist() if any_row else [0] * self.count

    def span(self, rows: slice) -> tuple[int, int]:
        """Lowest and highest key position of these rows in any sequence."""
        return self._lowest[rows.start], self._highest[rows.stop - 1]

    def take(
        self, x: Shaped[Tensor, " ..."], axis: int, tile: slice | None = None, batch: slice | None = None
    ) -> Shaped[Tensor, " ..."]:
        """Take these rows of ``x``, whose axis 0 is the batch (or 1) and whose ``axis`` counts query rows."""
        part = slice(0, self.count) if tile is None else tile
        if self.indices is None or x.shape[axis] == 1:
            return x if x.shape[axis] == 1 else x.narrow(axis, part.start, part.stop - part.start)
        index = self.indices[batch or slice(None), part]
        index = index.view(index.shape[0], *(index.shape[1] if d == axis else 1 for d in range(1, x.dim())))
        return torch.take_along_dim(x, index, axis)

    def restore(
        self, plane: Shaped[Tensor, "... batch heads rows"]
    ) -> Shaped[Tensor, "... batch heads rows"]:
        """Bring planes ``[..., B, H, rows]`` into the order in which the rows were requested."""
        if self._order is None:
            return plane
        return torch.empty_like(plane).scatter_(-1, self._order[:, None].expand_as(plane), plane)

    def band(self, rows: slice) -> slice:
        """Columns that any of these rows may see as far as causality and window go."""
        problem = self._problem
        lowest, highest = self.span(rows)
        start, stop = 0, problem.keys
        if problem.left is not None:
            start = max(start, lowest - problem.left)
        if problem.right is not None:
            stop = min(stop, highest + 1 + problem.right)
        return slice(min(start, stop), stop) if stop > 0 else slice(0, 0)

    def edges(self, tile: Tile) -> Iterator[slice]:
        """Parts of a tile's columns in which causality or window hide keys from some rows only."""
        problem, columns = self._problem, tile.columns
        lowest, highest = self.span(tile.rows)
        if problem.left is not None and (inner := highest - problem.left) > columns.start:
            yield slice(columns.start, min(inner, columns.stop))
        if problem.right is not None and (inner := lowest + problem.right + 1) < columns.stop:
            yield slice(max(inner, columns.start), columns.stop)


class Plan(NamedTuple):
    """The numbers of sequences, key heads and rows of a tile; its columns are all that its rows may see."""

    batch: int
    key_heads: int
    rows: int

    @classmethod
    def of(cls, problem: AttentionProblem, scores: int) -> Plan:
        """Fill about ``scores`` scores per tile: all heads of a sequence first, they share their mask."""
        batch, key_heads = problem.key.shape[:2]
        row = max(1, problem.group_size) * _widest(problem, _MOST_ROWS)
        rows = min(_MOST_ROWS, max(_FEW_ROWS, scores // (key_heads * row)), problem.rows_shape[2])
        rows = max(1, min(rows, scores // row))
        if rows > _FEW_ROWS:  # the matrix product takes this many at a time
            rows -= rows % _FEW_ROWS
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
    if problem.left is None or problem.right is None or problem.rows is not None:
        return problem.keys
    return min(problem.keys, problem.left + problem.right + rows)
