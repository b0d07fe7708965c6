"""The portable backend with its tile compiled by inductor: one pass over the scores instead of ten.

Opt-in: compiling takes a C++ compiler and, where inductor's cache is cold, some twenty seconds.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_geo.kernels.chunked import TILE_SCORES, WHOLE, RowSums, statistics_by_tile
from lightning_geo.kernels.problem import AttentionProblem, AttentionStatistics
from lightning_geo.kernels.tiles import Tile

__all__ = ["compiled", "unsupported"]

_log = logging.getLogger(__name__)


def compiled(problem: AttentionProblem, tile_scores: int = TILE_SCORES) -> AttentionStatistics:
    """Compute the statistics of one attention call on a CPU, in float32.

    Args:
        problem: The attention call.
        tile_scores: Scores per tile.
    """
    return statistics_by_tile(problem, tile_scores, _CompiledRowSums)


def unsupported(operation: str, problem: AttentionProblem) -> str | None:
    """Why a call cannot be taken; None if it can."""
    if problem.query.device.type != "cpu":
        return f"it is for CPUs, and the tensors are on {problem.query.device}"
    return _no_compiler()


@functools.cache
def _no_compiler() -> str | None:
    """Why nothing can be compiled here, tried once; None if it can."""
    try:
        # by the first sizes that it sees inductor decides whether threads are worth it, and which are equal
        rows, columns = 384, 512
        tile = torch.zeros(rows, columns)
        with torch.no_grad():
            _tile()(tile, torch.zeros(rows), torch.zeros(columns), torch.empty_like(tile))
    except Exception as error:  # inductor wraps whatever the compiler says
        reason = (
            f"inductor cannot compile here ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
        )
        _log.warning(
            'backend="compiled" falls back to "chunked": %s. Install a C++ compiler, or leave `backend` out.',
            reason,
        )
        return reason
    return None


@functools.cache
def _tile() -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    # lengths differ from call to call: one graph for all of them
    return torch.compile(_reduce, dynamic=True)


def _reduce(scores: Tensor, position: Tensor, column: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """The peaks of ``[rows, columns]``, and ``[6, rows]``: the sums that need whole rows.

    All that is computed has the same two axes, and ``e`` is not the memory of the scores: only then does
    inductor make one loop over rows of it, which reads a row twice from the nearest cache and writes it once.

    Args:
        scores: After masks.
        position: Key position of each row, ``[rows]`` in float32.
        column: Key position of each column, ``[columns]`` in float32.
        e: Becomes exp(score - peak), ``[rows, columns]``.
    """
    peak = scores.amax(-1, keepdim=True)
    exponent = scores - peak
    exponential = torch.exp(exponent)  # inductor's is faster than its exp2
    ahead = column - position[:, None]
    zero = torch.zeros_like(exponential)
    sums = (
        exponential.sum(-1),
        torch.where(ahead < 0, exponential, zero).sum(-1),
        torch.where(ahead > 0, exponential, zero).sum(-1),
        (exponential * ahead.abs()).sum(-1),
        (exponential * exponent).sum(-1),
        (exponential * exponential).sum(-1).sqrt(),
    )
    e.copy_(exponential)
    return peak.squeeze(-1), torch.stack(sums)


class _CompiledRowSums(RowSums):
    def exponentials(self, tile: Tile, scores: Tensor) -> Tensor:
        batch, heads, rows, columns = tile.shape
        position = self.rows.positions
        sequences = tile.batch if position.shape[0] > 1 else slice(None)
        position = position[sequences, None, tile.rows].expand(batch, heads, -1).to(torch.float32)
        column = torch.arange(tile.columns.start, tile.columns.stop, dtype=torch.float32)
        e = self.other_tile(scores)
        peak, sums = _tile()(scores.view(-1, columns), position.reshape(-1), column, e.view(-1, columns))
        self.peak[tile[:3]] = peak.view(batch, heads, rows)
        self.sums[WHOLE, tile.batch, tile.heads, tile.rows] = sums.view(-1, batch, heads, rows)
        return e
