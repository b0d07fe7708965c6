"""Statistics of all visible pairs of a query and a key, in tiles: nothing of size Nq × Nk."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_geo.kernels.chunked import TILE_SCORES
from lightning_geo.kernels.masks import bias_of, is_hidden
from lightning_geo.kernels.precision import exactly
from lightning_geo.kernels.problem import AttentionProblem
from lightning_geo.kernels.tiles import Plan, Rows, Tile

__all__ = ["score_histogram"]


def _tiles(problem: AttentionProblem, tile_scores: int) -> Iterator[tuple[Tile, Tensor, Tensor]]:
    """Dot products ``[b, h, rows, columns]`` without scale, softcap and bias, and which pairs are visible."""
    plan, rows = Plan.of(problem, tile_scores), Rows(problem)
    shared = problem.group_size
    for batch, key_heads in plan.groups(problem):
        heads = slice(key_heads.start * shared, key_heads.stop * shared)
        query = problem.query[batch, heads].to(torch.float32)
        key = problem.key[batch, key_heads].to(torch.float32)
        for start in range(0, query.shape[2], plan.rows):
            part = slice(start, min(start + plan.rows, query.shape[2]))
            tile = Tile(batch, heads, part, rows.band(part))
            if not tile.shape[3]:
                continue
            grouped = query[:, :, part].unflatten(1, (-1, shared)).flatten(2, 3)
            products = (grouped @ key[:, :, tile.columns].mT).view(tile.shape)
            visible = ~is_hidden(bias_of(problem, rows, tile)).expand(tile.shape)
            if problem.query_mask is not None:
                visible = visible & problem.query_mask[batch, None, part, None]
            yield tile, products, visible


def score_histogram(problem: AttentionProblem, bins: int, tile_scores: int = TILE_SCORES) -> Tensor:
    """How many visible pairs have a dot product in each of ``bins`` equal parts of their range.

    Args:
        problem: The attention call.
        bins: Between the smallest product and the largest of each sequence and head.
        tile_scores: Scores per tile.

    Returns:
        float64 ``[B, H, bins]``; NaN where a product is not finite.
    """
    with torch.no_grad(), exactly(problem.query.device):
        shape = problem.rows_shape[:2]
        lowest = problem.query.new_full(shape, torch.inf, dtype=torch.float32)
        highest = torch.full_like(lowest, -torch.inf)
        for tile, products, visible in _tiles(problem, tile_scores):
            at = tile[:2]
            lowest[at] = torch.minimum(lowest[at], products.where(visible, torch.inf).amin((2, 3)))
            highest[at] = torch.maximum(highest[at], products.where(visible, -torch.inf).amax((2, 3)))
        width = (highest - lowest)[..., None, None]
        counts = torch.zeros(*shape, bins, dtype=torch.float32, device=products.device)
        for tile, products, visible in _tiles(problem, tile_scores):
            at = tile[:2]
            place = (products - lowest[at][..., None, None]) / torch.where(width[at] > 0, width[at], 1.0)
            place = place.mul_(bins).nan_to_num_(0.0).clamp_(0, bins - 1).to(torch.int64)
            counts[at] += torch.zeros_like(counts[at]).scatter_add_(
                -1, place.flatten(2), visible.flatten(2).to(torch.float32)
            )
        return torch.where(width[..., 0].isfinite(), counts, torch.nan).double()
