"""Visible keys: their number in each row, and the first one of each sequence.

Both follow from causality, window and the keys that masks hide from all rows alike, without a look at pairs
of rows and keys. Only masks that differ between rows are searched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.kernels.masks import HIDDEN_BELOW, bias_of, is_hidden
from lightning_geo.kernels.problem import AttentionProblem
from lightning_geo.kernels.tiles import Rows, Tile
from lightning_geo.kernels.workspace import kept_of
from lightning_geo.utils.shapes import Bool, Float, Int64, Shaped

__all__ = ["count_visible", "first_keys"]

# columns per step in the search for the first key: nearly always the first step finds it
_STEP = 64


def count_visible(problem: AttentionProblem) -> Float[Tensor, "#batch #heads #queries"] | None:
    """Count the visible keys of every row, chosen or not; None where masks differ between rows."""
    masks = _shared_masks(problem)
    return None if masks is None else kept_of(_counts, masks, _Band.of(problem))


def first_keys(problem: AttentionProblem) -> Int64[Tensor, " batch"]:
    """Find the first valid key of each sequence, as ``AttentionStatistics.first_mass`` defines it.

    Returns:
        int64 ``[B]``; Nk where a sequence has none.
    """
    masks, batch = _shared_masks(problem), problem.query.shape[0]
    if masks is None:
        return _search(problem)
    first: Tensor = kept_of(_first, (problem.query_mask, *masks), _Band.of(problem))
    return first.expand(batch)


def _shared_masks(
    problem: AttentionProblem,
) -> tuple[Shaped[Tensor, "#batch #heads 1 #keys"], ...] | None:
    """The problem's masks if none differs between rows."""
    masks = tuple(m for m in problem.masks if isinstance(m, Tensor) and m.shape[2] == 1)
    return masks if len(masks) == len(problem.masks) else None


class _Band(NamedTuple):
    """The positions of rows among the keys, and how far they see."""

    queries: int
    keys: int
    offset: int
    left: int | None
    right: int | None
    device: torch.device

    @classmethod
    def of(cls, problem: AttentionProblem) -> _Band:
        return cls(
            problem.query.shape[2], problem.keys, problem.offset, problem.left, problem.right,
            problem.query.device,
        )  # fmt: skip

    @property
    def positions(self) -> Int64[Tensor, " queries"]:
        return torch.arange(self.offset, self.offset + self.queries, device=self.device)


def _shared_row(
    masks: tuple[Shaped[Tensor, "#batch #heads 1 #keys"], ...], keys: int
) -> Bool[Tensor, "#batch #heads {keys}"] | None:
    """The keys that masks leave to all rows; None without masks."""
    shared: Tensor | None = None
    for mask in masks:
        row = mask[:, :, 0]
        # a NaN hides nothing: it has to reach the row's statistics
        row = row if row.dtype == torch.bool else ~(row <= HIDDEN_BELOW)
        shared = row if shared is None else shared & row
    return None if shared is None else shared.expand(-1, -1, keys)


def _counts(
    masks: tuple[Shaped[Tensor, "#batch #heads 1 #keys"], ...], band: _Band
) -> Float[Tensor, "#batch #heads #queries"]:
    """Count the keys of the shared row that lie in each row's band."""
    row = _shared_row(masks, band.keys)
    if band.left is None and band.right is None:
        if row is None:
            return torch.full((1, 1, 1), float(band.keys), device=band.device)
        return row.sum(-1, keepdim=True, dtype=torch.float32)
    if row is None:
        row = torch.ones(1, 1, band.keys, dtype=torch.bool, device=band.device)
    # float32 counts up to 2^24 exactly
    before = F.pad(row.cumsum(-1, dtype=torch.float32), (1, 0))
    start, stop = torch.zeros_like(band.positions), torch.full_like(band.positions, band.keys)
    if band.right is not None:
        stop = (band.positions + band.right + 1).clamp(0, band.keys)
    if band.left is not None:
        start = torch.minimum((band.positions - band.left).clamp(min=0), stop)
    return before[:, :, stop] - before[:, :, start]


def _first(tensors: tuple[Shaped[Tensor, " ..."] | None, ...], band: _Band) -> Int64[Tensor, " #batch"]:
    """The lowest key that any row sees first, from the start of its band on."""
    real, *masks = tensors
    square = band.queries == band.keys
    if band.queries == 0:
        return torch.full((1,), band.keys, device=band.device)
    row = _shared_row(tuple(mask for mask in masks if mask is not None), band.keys)
    valid = None if row is None else row[:, 0] if row.shape[1] == 1 else row.any(1)
    if real is not None and square:
        valid = real if valid is None else valid & real
    if square and band.offset == 0 and valid is not None:  # visible to its own row at least
        return F.pad(valid, (0, 1), value=True).view(torch.uint8).argmax(-1)
    columns, none = torch.arange(band.keys, device=band.device)[None], band.keys
    candidates = columns if valid is None else columns.masked_fill(~valid, none)
    if band.left is None:
        first = candidates.amin(-1, keepdim=True)
    else:
        following = F.pad(candidates.flip(-1).cummin(-1).values.flip(-1), (0, 1), value=none)
        first = following[:, (band.positions - band.left).clamp(0, none)]
    if band.right is not None:
        first = first.masked_fill(first > band.positions + band.right, none)
    if real is not None:
        first = first.masked_fill(~real, none)
    return first.amin(-1)


def _search(problem: AttentionProblem) -> Int64[Tensor, " batch"]:
    """Find the first keys where masks differ between rows, a few columns at a time."""
    problem = replace(problem, rows=None)  # the first key of the sequence, not that of the chosen rows
    rows = Rows(problem)
    batch, heads, queries = problem.rows_shape
    real = problem.query_mask
    first = torch.full((batch,), problem.keys, device=problem.query.device)
    for start in range(0, problem.keys, _STEP):
        columns = slice(start, min(start + _STEP, problem.keys))
        seen = _seen(problem, rows, Tile(slice(0, batch), slice(0, heads), slice(0, queries), columns))
        if real is not None and queries == problem.keys:
            seen = seen & real[:, columns]
        earliest = torch.where(seen.any(-1), start + seen.to(torch.uint8).argmax(-1), problem.keys)
        first = torch.minimum(first, earliest)
        if bool((first < problem.keys).all()):
            break
    return first


def _seen(problem: AttentionProblem, rows: Rows, tile: Tile) -> Bool[Tensor, "batch columns"]:
    """Bool ``[B or 1, columns]``: which keys any live row of the tile may attend to."""
    visible = (~is_hidden(bias_of(problem, rows, tile))).any(dim=1)
    if problem.query_mask is not None:
        real = problem.query_mask[:, tile.rows, None]
        # where all rows see the same keys, whether there is one at all
        visible = visible & (real if visible.shape[1] > 1 else real.any(dim=1, keepdim=True))
    return visible.any(dim=1).expand(-1, tile.shape[3])
