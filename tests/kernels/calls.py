"""Arguments of attention calls, and what they are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, patch

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from lightning_geo.functional import attention_statistics
from lightning_geo.kernels import AttentionProblem, AttentionStatistics

Arguments = dict[str, Any]


def problem_of(arguments: Arguments) -> AttentionProblem:
    """What the public function makes of its arguments."""
    result = Mock(spec=AttentionStatistics)
    with patch("lightning_geo.functional.attention.attention", return_value=result) as kernels:
        attention_statistics(**arguments)
    problem: AttentionProblem = kernels.call_args.args[0]
    return problem


def with_rows(problem: AttentionProblem, share: float = 0.4) -> AttentionProblem:
    """The same problem for some of its rows, in any order, some of them twice."""
    batch, _, queries = problem.rows_shape
    generator = torch.Generator().manual_seed(7)
    count = round(share * queries) + 1 if queries else 0
    rows = torch.randint(0, max(queries, 1), (batch, count), generator=generator)
    return dataclasses.replace(problem, rows=rows)


def qk(
    batch: int = 2,
    heads: int = 3,
    queries: int = 13,
    keys: int = 13,
    dim: int = 8,
    key_heads: int | None = None,
    size: float = 2.0,
) -> Arguments:
    """Random query and key whose attention is neither flat nor one-hot."""
    return {
        "query": size * torch.randn(batch, heads, queries, dim),
        "key": torch.randn(batch, key_heads or heads, keys, dim),
    }


def on_a_lattice(arguments: Arguments) -> Arguments:
    """Scores that float32 holds exactly, even at 1e4: all digits of the result are owed."""
    return {
        **arguments,
        **{name: (4 * arguments[name]).round() / 4 for name in ("query", "key")},
        "scale": 0.25,
    }


def lengths(keys: int, *real: int) -> Tensor:
    """[B, Nk], True for the first ``real`` keys."""
    return torch.arange(keys) < torch.tensor(real)[:, None]


def block_mask(rule: Callable[..., Tensor], *shape: int | None, block: int = 8) -> BlockMask:
    return create_block_mask(rule, *shape, device="cpu", BLOCK_SIZE=block)
