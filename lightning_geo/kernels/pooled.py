"""Attention patterns pooled to a few cells, in tiles of query rows: nothing of size Nq × Nk."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.kernels.chunked import TILE_SCORES
from lightning_geo.kernels.masks import bias_of, is_hidden
from lightning_geo.kernels.precision import exactly
from lightning_geo.kernels.problem import AttentionProblem
from lightning_geo.kernels.tiles import Plan, Rows, Tile
from lightning_geo.kernels.workspace import kept_of, scratch, where_defined
from lightning_geo.utils.shapes import Bool, Float, Int64

__all__ = ["pooled_attention"]


def pooled_attention(
    problem: AttentionProblem, cells: int, tile_scores: int = TILE_SCORES
) -> tuple[Float[Tensor, "batch heads cell cell"], Int64[Tensor, " batch"]]:
    r"""Mean attention from blocks of queries to blocks of keys, queries and keys being the same tokens.

    The n real tokens of a sequence are divided in order into m = min(n, ``cells``) blocks; block I holds the
    tokens k with ⌊k m / n⌋ = I, so that sizes differ by at most one, and up to ``cells`` tokens each have a
    block of their own.

    .. math:: A_{IJ} = \frac{1}{|I|} \sum_{i \in I} \sum_{j \in J} p_{ij}

    Only rows i that see a key count. Each row of A adds to 1 where no attention goes to padding.

    Args:
        problem: The attention call; ``query_mask`` marks real tokens. Its sinks are left out.
        cells: Blocks at most.
        tile_scores: Scores per tile.

    Returns:
        float32 ``[B, H, c, c]`` with c = min(N, ``cells``), NaN where there is no such block, where none of
        its rows sees a key, and where a score is not finite; and how many tokens are real.
    """
    count = problem.keys
    side = min(cells, count)
    with torch.no_grad(), exactly(problem.query.device):
        members, real = kept_of(_members, (problem.query_mask,), problem.query.shape[0], count, side,
                                problem.query.device)  # fmt: skip
        plan, rows = Plan.of(problem, tile_scores), Rows(problem)
        shape = problem.rows_shape[:2]
        mass = problem.query.new_zeros(*shape, side, side, dtype=torch.float32)
        live_rows = problem.query.new_zeros(*shape, side, dtype=torch.float32)
        for batch, key_heads in plan.groups(problem):
            heads = slice(key_heads.start * problem.group_size, key_heads.stop * problem.group_size)
            query = problem.query[batch, heads].float()
            key = problem.key[batch, key_heads].float().repeat_interleave(problem.group_size, dim=1)
            for start in range(0, count, plan.rows):
                part = slice(start, min(start + plan.rows, count))
                tile = Tile(batch, heads, part, rows.band(part))
                if not tile.shape[3]:
                    continue
                p, live = _probabilities(problem, rows, tile, query[:, :, part], key[:, :, tile.columns])
                queries = members[batch, None, part]
                by_key = p @ members[batch, None, tile.columns]
                mass[batch, heads] += queries.mT @ by_key
                live_rows[batch, heads] += (queries.mT @ live.float()[..., None])[..., 0]
        exists = torch.arange(side, device=real.device) < real[:, None, None, None]
        return where_defined(exists, mass / live_rows[..., None]), real


def _members(
    masks: tuple[Bool[Tensor, "batch tokens"] | None], batch: int, count: int, side: int, device: torch.device
) -> tuple[Float[Tensor, "batch tokens side"], Int64[Tensor, " batch"]]:
    """Which block each token is in, 1 there and 0 elsewhere, and the numbers of real tokens."""
    (mask,) = masks
    if mask is None:
        mask = torch.ones(batch, count, dtype=torch.bool, device=device)
    real = mask.sum(-1)
    place = mask.cumsum(-1) - 1
    block = place * real.clamp(max=side)[:, None] // real.clamp(min=1)[:, None]
    inside = block[..., None] == torch.arange(side, device=device)
    return (inside & mask[..., None]).float(), real


def _probabilities(
    problem: AttentionProblem,
    rows: Rows,
    tile: Tile,
    query: Float[Tensor, "b h rows dim"],
    key: Float[Tensor, "b h columns dim"],
) -> tuple[Float[Tensor, "b h rows columns"], Bool[Tensor, "b h rows"]]:
    """The softmax of a tile's rows over all keys that they see, 0 in rows that do not count; and which do."""
    scores = torch.matmul(query, key.mT, out=scratch("pooled", tile.shape, query)).mul_(problem.scale)
    if problem.softcap is not None:
        scores.div_(problem.softcap).tanh_().mul_(problem.softcap)
    bias = bias_of(problem, rows, tile)
    hidden = is_hidden(bias)
    live = (~hidden).any(-1).expand(tile.shape[:3])
    if problem.query_mask is not None:
        live = live & problem.query_mask[tile.batch, None, tile.rows]
    # padding may hold NaN or infinity, which no bias hides
    scores.add_(bias).masked_fill_(hidden, -torch.inf)
    p = torch.softmax(scores, -1, out=scratch("pooled softmax", tile.shape, query))
    return p.masked_fill_(~live[..., None], 0.0), live
