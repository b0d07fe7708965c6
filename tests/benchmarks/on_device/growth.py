"""How cost and memory grow with length, and what eager attention with entropies costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from lightning_geo import kernels
from lightning_geo.kernels import STATISTICS
from on_device.bench import Bench, ratio, table
from on_device.calls import Shape, flash, problem

__all__ = ["prepare"]


def prepare(bench: Bench) -> object:
    """Compile for one length; all others use the same kernels."""
    kernels.attention(problem(bench, Shape(1, 8, 8, 128 if not bench.tiny else 24, 64, True)), "triton")
    kernels.attention(problem(bench, Shape(2, 12, 12, 128 if not bench.tiny else 24, 64, False)), "triton")
    return lambda: _run(bench)


def _measured(call: kernels.AttentionProblem) -> Callable[[], object]:
    return lambda: kernels.attention(call, "triton")


def _eager(call: kernels.AttentionProblem) -> Callable[[], object]:
    """What users do today: ``output_attentions=True`` and an entropy."""

    def run() -> object:
        with torch.no_grad():
            scores = call.query @ call.key.transpose(-2, -1) * call.scale
            p = torch.softmax(scores, -1, dtype=torch.float32)
            (p.to(call.query.dtype) @ call.key).sum()
            return torch.special.entr(p).sum(-1)

    return run


def _run(bench: Bench) -> None:
    def against_eager() -> Any:
        for tokens in [40] if bench.tiny else [512, 1024, 2048, 4096]:
            call = problem(bench, Shape(2, 12, 12, tokens, 64, False))
            slow, fast = bench.times(_eager(call), _measured(call))
            memory = (f"{bench.memory(f):.0f}" for f in (_eager(call), _measured(call)))
            yield tokens, statistics.median(slow), statistics.median(fast), ratio(slow, fast), *memory

    def by_length() -> Any:
        for tokens in [24, 40] if bench.tiny else [2**n for n in range(7, 18, 2)]:
            call = problem(bench, Shape(1, 8, 8, tokens, 64, True))
            forward, ours = bench.times(flash(bench, call, True), _measured(call))
            planes = 8 * tokens * 4 * (len(STATISTICS) + 2) / 2**20
            memory = f"{bench.memory(_measured(call)):.1f}", f"{planes:.1f}"
            medians = statistics.median(forward), statistics.median(ours)
            yield tokens, *medians, ratio(ours, forward), *memory

    table(
        "Against eager attention with entropies, B 2, H 12, D 64, bf16",
        "N | eager ms | all statistics ms | times faster | eager MiB | ours MiB",
        against_eager(),
    )
    table(
        "How cost grows with length: causal, B 1, H 8, D 64, bf16",
        "N | SDPA ms | all statistics ms | ratio | MiB | MiB of its planes",
        by_length(),
    )
