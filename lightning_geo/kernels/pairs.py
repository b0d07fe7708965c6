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

__all__ = ["near_and_mutual", "norm_shares", "score_histogram"]


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


def norm_shares(problem: AttentionProblem, tile_scores: int = TILE_SCORES) -> Tensor:
    """Covariance shares of ln‖q‖, ln‖k‖ and ln|cos| in the variance of ln|q·k| over visible pairs.

    Args:
        problem: The attention call.
        tile_scores: Scores per tile.

    Returns:
        float32 ``[3, B, H]``, adding to 1; NaN where the variance is 0 or a vector not finite. Pairs whose
        product is 0 have no logarithm and are left out.
    """
    with torch.no_grad(), exactly(problem.query.device):
        dtype = torch.float32 if problem.query.device.type == "mps" else torch.float64
        sums = problem.query.new_zeros(7, *problem.rows_shape[:2], dtype=dtype)
        lengths = [torch.linalg.vector_norm(x.float(), dim=-1).log() for x in (problem.query, problem.key)]
        for tile, products, visible in _tiles(problem, tile_scores):
            batch, heads, rows, columns = tile
            defined = visible & (products != 0)
            score = torch.where(defined, products.abs().log(), 0.0)
            query = lengths[0][batch, heads, rows, None]
            key = lengths[1].repeat_interleave(problem.group_size, dim=1)[batch, heads, None, columns]
            # where a vector is zero its products are, and nothing is added
            query, key = (torch.where(defined, x, 0.0) for x in (query, key))
            parts = (defined, score, score.square(), query, key, query * score, key * score)
            sums[:, batch, heads] += torch.stack([x.sum((2, 3), dtype=dtype) for x in parts])
        count, score, square, query, key, with_query, with_key = sums
        variance = square / count - (score / count).square()
        by_query = (with_query / count - query * score / count.square()) / variance
        by_key = (with_key / count - key * score / count.square()) / variance
        shares = torch.stack([by_query, by_key, 1 - by_query - by_key])
        # rounding of equal scores is no variance
        return torch.where(variance > 1e-10, shares, torch.nan).float()


def near_and_mutual(
    problem: AttentionProblem, logsumexp: Tensor, live: Tensor, near: int, tile_scores: int = TILE_SCORES
) -> dict[str, Tensor]:
    """How much attention goes to near tokens on either side, and how much of it is returned.

    Args:
        problem: The attention call, queries and keys being the same tokens.
        logsumexp: ``[B, H, N]`` of its scores.
        live: Bool ``[B, H, N]``, rows that count.
        near: How many tokens away is near.
        tile_scores: Scores per tile.

    Returns:
        float32 ``[B, H]`` each: ``backward`` and ``forward``, the mean mass of a row on its ``near`` tokens
        before and after, and ``cluster``, Σ_{i≠j} p_ij p_ji / Σ p_ij².
    """
    with torch.no_grad(), exactly(problem.query.device):
        plan, rows, count = Plan.of(problem, tile_scores), Rows(problem), problem.keys
        # rows that do not count have no probabilities
        offset = torch.where(live, logsumexp.float(), torch.inf)
        sums = problem.query.new_zeros(4, *problem.rows_shape[:2], dtype=torch.float32)
        every = slice(0, count)
        index = torch.arange(count, device=problem.query.device)
        for batch, key_heads in plan.groups(problem):
            heads = slice(key_heads.start * problem.group_size, key_heads.stop * problem.group_size)
            query = problem.query[batch, heads].float()
            key = problem.key[batch, key_heads].float().repeat_interleave(problem.group_size, dim=1)

            def attend(r: slice, c: slice, at: tuple[slice, slice] = (batch, heads),
                       q: Tensor = query, k: Tensor = key) -> Tensor:  # fmt: skip
                scores = q[:, :, r] @ k[:, :, c].mT * problem.scale
                if problem.softcap is not None:
                    scores = problem.softcap * torch.tanh(scores / problem.softcap)
                scores += bias_of(problem, rows, Tile(*at, r, c))
                return scores.sub_(offset[at][:, :, r, None]).exp_()

            for start in range(0, count, plan.rows):
                part = slice(start, min(start + plan.rows, count))
                here = attend(part, every)
                ahead = index - index[part, None]
                masks = ((ahead < 0) & (ahead >= -near), (ahead > 0) & (ahead <= near))
                total = here.square().sum((2, 3))
                back, forth = ((here * mask).sum((2, 3)) for mask in masks)
                mutual = (here * attend(every, part).mT).masked_fill_(ahead == 0, 0.0).sum((2, 3))
                sums[:, batch, heads] += torch.stack([back, forth, mutual, total])
        counted = live.sum(-1)
        back, forth, mutual, total = sums
        return {"backward": back / counted, "forward": forth / counted, "cluster": mutual / total}
