"""Attention statistics without the attention matrix: one normalised problem, several backends."""

from __future__ import annotations

from lightning_geo.kernels.blocks import BlockRule, mask_rows
from lightning_geo.kernels.chunked import chunked
from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.problem import AttentionProblem, AttentionStatistics

__all__ = ["HIDDEN_BELOW", "AttentionProblem", "AttentionStatistics", "BlockRule", "compute", "mask_rows"]


def compute(problem: AttentionProblem) -> AttentionStatistics:
    """Run a checked problem on the fastest backend for where its tensors are.

    Args:
        problem: The attention call.

    Returns:
        Its statistics, without a gradient.
    """
    return chunked(problem)
