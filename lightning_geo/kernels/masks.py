"""Masks of every kind, causality and windows, as a bias on the scores."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.kernels.blocks import BlockRule
from lightning_geo.kernels.problem import AttentionProblem
from lightning_geo.kernels.tiles import Rows, Tile
from lightning_geo.kernels.workspace import kept_of
from lightning_geo.utils.shapes import Bool, Float, Shaped

__all__ = ["HIDDEN_BELOW", "HIDDEN_SCORE", "bias_of", "count_hidden", "is_hidden"]

#: An additive mask entry at or below it hides its key. -inf, ``finfo.min`` of every type, -1e4 (and -1e4
#: plus a position bias) all occur in practice, while no learned bias comes near.
HIDDEN_BELOW = -9000.0

#: Score of a hidden key in float32: finite, so that a row without visible keys yields no inf - inf.
HIDDEN_SCORE = -1e30


def bias_of(
    problem: AttentionProblem, rows: Rows, tile: Tile
) -> Float[Tensor, "#batch #heads #rows #columns"]:
    """Bias that masks, causality and window add to a tile's scores; :func:`is_hidden` finds hidden keys.

    Returns:
        float32, each axis of the tile's size or 1.
    """
    parts = [_mask_bias(mask, rows, tile) for mask in problem.masks]
    if problem.left is not None or problem.right is not None:
        parts.append(_band_bias(problem, rows, tile))
    if not parts:
        return problem.query.new_zeros(1, 1, 1, 1, dtype=torch.float32)
    return functools.reduce(torch.add, parts)


def is_hidden(bias: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Find where a bias hides its key. A NaN hides nothing: it has to reach the row's statistics."""
    return bias <= HIDDEN_SCORE / 2


def count_hidden(
    bias: Float[Tensor, "batch heads rows #{columns}"], columns: int
) -> Float[Tensor, "batch heads rows"]:
    """Count the columns of a tile that a bias hides from each row: float32, :func:`is_hidden` summed up."""
    # a comparison is vectorised only where its result is as wide as its operands
    hidden = torch.le(bias, HIDDEN_SCORE / 2, out=torch.empty_like(bias))
    return hidden.expand(-1, -1, -1, columns).sum(-1)


def _mask_bias(
    mask: Shaped[Tensor, "#batch #heads #queries #keys"] | BlockRule, rows: Rows, tile: Tile
) -> Float[Tensor, "#b #h #rows #columns"]:
    if isinstance(mask, BlockRule):
        queries = tile.rows if rows.indices is None else rows.indices[tile.batch, tile.rows]
        return _as_bias((mask.visible(tile.batch, tile.heads, queries, tile.columns),))
    batch, heads, _, columns = (s if n > 1 else slice(None) for s, n in zip(tile, mask.shape, strict=True))
    if mask.shape[2] == 1:
        bias: Tensor = kept_of(_as_bias, (mask,))
        return bias[batch, heads, :, columns]
    return _as_bias((rows.take(mask[batch, heads, :, columns], 2, tile.rows, tile.batch),))


def _as_bias(masks: tuple[Shaped[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
    (mask,) = masks
    if mask.dtype != torch.bool:
        # one pass where a comparison and a fill take ten
        return F.threshold(mask.to(torch.float32), HIDDEN_BELOW, HIDDEN_SCORE)
    # booleans convert ten times slower than bytes
    return (mask.view(torch.int8) - 1) * -HIDDEN_SCORE


def _band_bias(problem: AttentionProblem, rows: Rows, tile: Tile) -> Float[Tensor, "batch 1 rows columns"]:
    batch = tile.batch if rows.positions.shape[0] > 1 else slice(None)
    position = rows.positions[batch, None, tile.rows, None]
    column = torch.arange(tile.columns.start, tile.columns.stop, device=position.device)
    outside = torch.zeros(1, dtype=torch.bool, device=position.device)
    if problem.left is not None:
        outside = outside | (column < position - problem.left)
    if problem.right is not None:
        outside = outside | (column > position + problem.right)
    return outside.to(torch.float32).mul_(HIDDEN_SCORE)
