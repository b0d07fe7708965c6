"""The portable backend with its tile compiled by inductor: two passes over the scores instead of ten.

Opt-in: compiling takes a C++ compiler and, where inductor's cache is cold, some twenty seconds.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_geo.kernels.chunked import SUMS, TILE_SCORES, RowSums, statistics_by_tile
from lightning_geo.kernels.problem import AttentionProblem, AttentionStatistics
from lightning_geo.kernels.tiles import Tile

__all__ = ["compiled", "unsupported"]

#: What the compiled tile sums up, in its order.
_SUMMED = ("total", "backward_mass", "forward_mass", "distance", "moment", "norm")
_INDEX = [SUMS.index(name) for name in _SUMMED]

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
        with torch.no_grad():
            _tile()(torch.zeros(2, 3, 5), torch.zeros(3), torch.zeros(5))
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
def _tile() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    # lengths differ from call to call: one graph for all of them
    return torch.compile(_reduce, dynamic=True)


def _reduce(scores: Tensor, position: Tensor, column: Tensor) -> tuple[Tensor, ...]:
    """The peaks of ``[n, rows, columns]``, and the sums of ``_SUMMED``; scores become e = exp(score - peak).

    Args:
        scores: After masks.
        position: Key position of each row, ``[rows]`` or ``[n, rows]``, in float32.
        column: Key position of each column, in float32.
    """
    peak = scores.amax(-1, keepdim=True)
    exponent = scores - peak
    e = torch.exp(exponent)  # inductor's is faster than its exp2
    ahead = column - position[..., None]
    side = torch.sign(ahead)  # a product where a condition would cost twice as much
    beside, difference = (e * side.abs()).sum(-1), (e * side).sum(-1)
    sums = (
        e.sum(-1),
        (beside - difference) / 2,
        (beside + difference) / 2,
        (e * ahead.abs()).sum(-1),
        (e * exponent).sum(-1),
        (e * e).sum(-1).sqrt(),
    )
    scores.copy_(e)  # new memory would cost more than all of the above
    return peak.squeeze(-1), *sums


class _CompiledRowSums(RowSums):
    def exponentials(self, tile: Tile, scores: Tensor) -> Tensor:
        batch, heads, rows, columns = tile.shape
        position = self.rows.positions
        if position.shape[0] == 1:
            position = position[0, tile.rows]
        else:
            position = position[tile.batch, None, tile.rows].expand(-1, heads, -1).reshape(-1, rows)
        column = torch.arange(tile.columns.start, tile.columns.stop, dtype=torch.float32)
        peak, *sums = _tile()(scores.view(-1, rows, columns), position.to(torch.float32), column)
        self.peak[tile[:3]] = peak.view(batch, heads, rows)
        for index, values in zip(_INDEX, sums, strict=True):
            self.sums[index][tile[:3]] = values.view(batch, heads, rows)
        return scores
