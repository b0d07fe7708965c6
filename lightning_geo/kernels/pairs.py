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
from lightning_geo.kernels.workspace import scratch, where_defined
from lightning_geo.utils.shapes import Bool, Float, Int64

__all__ = ["near_and_mutual", "norm_shares", "score_histogram"]


def _tiles(
    problem: AttentionProblem, tile_scores: int
) -> Iterator[tuple[Tile, Float[Tensor, "b h rows columns"], Bool[Tensor, "#b #h #rows #columns"]]]:
    """Dot products ``[b, h, rows, columns]`` without scale, softcap and bias, and which pairs are hidden.

    The caller may overwrite the products. The mask of hidden pairs has each axis of the tile's size or 1.
    """
    plan, rows = Plan.of(problem, tile_scores), Rows(problem)
    shared = problem.group_size
    for batch, key_heads in plan.groups(problem):
        heads = slice(key_heads.start * shared, key_heads.stop * shared)
        query = problem.query[batch, heads].to(torch.float32)
        key = problem.key[batch, key_heads].to(torch.float32).flatten(0, 1)
        for start in range(0, query.shape[2], plan.rows):
            part = slice(start, min(start + plan.rows, query.shape[2]))
            tile = Tile(batch, heads, part, rows.band(part))
            if not tile.shape[3]:
                continue
            grouped = query[:, :, part].unflatten(1, (-1, shared)).flatten(2, 3).flatten(0, 1)
            out = scratch("products", (*grouped.shape[:2], tile.shape[3]), query)
            products = torch.bmm(grouped, key[:, tile.columns].mT, out=out).view(tile.shape)
            hidden = is_hidden(bias_of(problem, rows, tile))
            if problem.query_mask is not None:
                hidden = hidden | ~problem.query_mask[batch, None, part, None]
            yield tile, products, hidden


def score_histogram(
    problem: AttentionProblem, bins: int, tile_scores: int = TILE_SCORES
) -> Float[Tensor, "batch heads {bins}"]:
    """Count visible pairs by their dot product, in ``bins`` equal parts of its range.

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
        for tile, products, hidden in _tiles(problem, tile_scores):
            at = tile[:2]
            lowest[at] = torch.minimum(lowest[at], products.masked_fill_(hidden, torch.inf).amin((2, 3)))
            highest[at] = torch.maximum(highest[at], products.masked_fill_(hidden, -torch.inf).amax((2, 3)))
        width = (highest - lowest)[..., None, None]
        counts = torch.zeros(*shape, bins, dtype=torch.float32, device=products.device)
        for tile, products, hidden in _tiles(problem, tile_scores):
            at = tile[:2]
            place = products.sub_(lowest[at][..., None, None]).div_(
                torch.where(width[at] > 0, width[at], 1.0)
            )
            place = place.mul_(bins).nan_to_num_(0.0).clamp_(0, bins - 1).to(torch.int64)
            counted = (~hidden).to(torch.float32).expand(tile.shape)
            counts[at] += torch.zeros_like(counts[at]).scatter_add_(-1, place.flatten(2), counted.flatten(2))
        return where_defined(width[..., 0].isfinite(), counts).double()


def norm_shares(problem: AttentionProblem, tile_scores: int = TILE_SCORES) -> Float[Tensor, "3 batch heads"]:
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
        queries, keys = (
            torch.linalg.vector_norm(x.float(), dim=-1).log() for x in (problem.query, problem.key)
        )
        # a vector that is zero or not finite is noticed by its products, so its logarithm may be 0 here
        queries, keys = (torch.where(x.isfinite(), x, 0.0) for x in (queries, keys))
        keys = keys.repeat_interleave(problem.group_size, dim=1)
        queries, keys = queries.to(dtype), keys.to(dtype)
        for tile, products, hidden in _tiles(problem, tile_scores):
            batch, heads, rows, columns = tile
            # a product of 0 stands for every pair without a logarithm; one of 1 has the logarithm 0
            products.masked_fill_(hidden, 0.0)
            absent = torch.eq(products, 0.0, out=scratch("absent", tile.shape, products))
            score = products.abs_().add_(absent).log_()
            # over a tile's row or column in float32, from there on in more
            by_row, by_column = ([x.sum(dim).to(dtype) for x in (absent, score)] for dim in (-1, -2))
            query, key = queries[batch, heads, rows], keys[batch, heads, columns]
            defined = [
                size - absent for size, absent in ((tile.shape[3], by_row[0]), (tile.shape[2], by_column[0]))
            ]
            square = torch.linalg.vector_norm(score, dim=-1).to(dtype).square()
            parts = (defined[0], by_row[1], square, query * defined[0], key * defined[1],
                     query * by_row[1], key * by_column[1])  # fmt: skip
            sums[:, batch, heads] += torch.stack([x.sum(-1) for x in parts])
        count, score, square, query, key, with_query, with_key = sums
        variance = square / count - (score / count).square()
        by_query = (with_query / count - query * score / count.square()) / variance
        by_key = (with_key / count - key * score / count.square()) / variance
        shares = torch.stack([by_query, by_key, 1 - by_query - by_key])
        # below this, equal scores differ by rounding alone
        return where_defined(variance > 1e-10, shares).float()


def _probabilities(
    problem: AttentionProblem,
    name: str,
    left: Float[Tensor, "b h rows dim"],
    right: Float[Tensor, "b h columns dim"],
    bias: Float[Tensor, "#b #h #rows #columns"],
    logsumexp: Float[Tensor, "b h #rows #columns"],
) -> Float[Tensor, "b h rows columns"]:
    """Softmax probabilities of one tile, from its scores and their logsumexp, in reused memory."""
    out = scratch(name, (*left.shape[:3], right.shape[2]), left)
    p = torch.matmul(left, right.mT, out=out).mul_(problem.scale)
    if problem.softcap is not None:
        p.div_(problem.softcap).tanh_().mul_(problem.softcap)
    return p.add_(bias).sub_(logsumexp).exp_()


def _pair_sums(
    back: Float[Tensor, "b h rows columns"],
    forth: Float[Tensor, "b h rows columns"],
    distance: Int64[Tensor, "rows columns"],
    near: int,
) -> Float[Tensor, "4 b h"]:
    """Sum a tile's near masses on either side, mutual products and squares; ``back`` and ``forth`` are lost.

    The last columns are the rows' own tokens, so that pairs right of the diagonal are left out there.
    """
    square = distance.shape[1] - distance.shape[0]
    own = back[..., square:].diagonal(dim1=-2, dim2=-1).square().sum(-1)
    for p in (back, forth):
        p[..., square:].tril_(-1)
    close = slice(max(0, square - near), None)
    inside = (distance[:, close] <= near).to(back.dtype)
    flat = back.flatten(2), forth.flatten(2)
    return torch.stack([
        (back[..., close] * inside).sum((2, 3)), (forth[..., close] * inside).sum((2, 3)),
        2 * torch.linalg.vecdot(*flat),
        own + sum(torch.linalg.vector_norm(p, dim=-1).square() for p in flat),
    ])  # fmt: skip


def near_and_mutual(
    problem: AttentionProblem,
    logsumexp: Float[Tensor, "batch heads tokens"],
    live: Bool[Tensor, "batch heads tokens"],
    near: int,
    tile_scores: int = TILE_SCORES,
) -> dict[str, Float[Tensor, "batch heads"]]:
    """Attention to near tokens on either side, and the share of attention that is mutual.

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
        # exp(score - inf) = 0: rows that are not live have no probabilities
        offset = torch.where(live, logsumexp.float(), torch.inf)
        sums = problem.query.new_zeros(4, *problem.rows_shape[:2], dtype=torch.float32)
        # largest distance at which one of two tokens sees the other
        bounded = problem.left is not None and problem.right is not None
        reach = max(problem.left or 0, problem.right or 0) if bounded else count
        index = torch.arange(count, device=problem.query.device)
        for batch, key_heads in plan.groups(problem):
            heads = slice(key_heads.start * problem.group_size, key_heads.stop * problem.group_size)
            query = problem.query[batch, heads].float()
            key = problem.key[batch, key_heads].float().repeat_interleave(problem.group_size, dim=1)
            norm, dead = offset[batch, heads], ~live[batch, heads]
            for start in range(0, count, plan.rows):
                late = slice(start, min(start + plan.rows, count))
                early = slice(max(0, start - reach), late.stop)
                # every pair of tokens once: the later attends to the earlier, and the other way round
                biases = (
                    bias_of(problem, rows, Tile(batch, heads, late, early)),
                    bias_of(problem, rows, Tile(batch, heads, early, late)).mT,
                )
                back, forth = (
                    # padding may hold NaN or infinity, which exp(score - inf) does not make 0
                    _probabilities(problem, name, x[:, :, late], y[:, :, early], bias, offsets).masked_fill_(
                        is_hidden(bias) | unused, 0.0
                    )
                    for name, x, y, bias, offsets, unused in (
                        ("back", query, key, biases[0], norm[:, :, late, None], dead[:, :, late, None]),
                        ("forth", key, query, biases[1], norm[:, :, None, early], dead[:, :, None, early]),
                    )
                )
                distance = index[late, None] - index[early]
                sums[:, batch, heads] += _pair_sums(back, forth, distance, near)
        counted = live.sum(-1)
        back, forth, mutual, total = sums
        return {"backward": back / counted, "forward": forth / counted, "cluster": mutual / total}
