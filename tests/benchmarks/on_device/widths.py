"""What a head's width costs, powers of two and those between them."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from lightning_geo import kernels
from lightning_geo.kernels import STATISTICS
from on_device.bench import Bench, micros, ratio, table
from on_device.calls import Shape, flash, problem

__all__ = ["prepare"]

WIDTHS = (64, 80, 96, 112, 128, 160, 192, 256)


def prepare(bench: Bench) -> object:
    """Compile the kernels of every width."""
    calls = []
    for width in WIDTHS:
        shape = Shape(1, 2, 2, 40, width, False) if bench.tiny else Shape(8, 16, 16, 1024, width, False)
        calls.append((width, problem(bench, shape, requested=frozenset(STATISTICS))))
    for _, call in calls:
        kernels.attention(call, "triton")
    return lambda: _run(bench, calls)


def _run(bench: Bench, calls: list[tuple[int, Any]]) -> None:
    def rows() -> Any:
        for width, call in calls:
            whole = functools.partial(kernels.attention, call, "triton")
            forward, ours = bench.times(flash(bench, call, False), whole)
            batch, heads, tokens, _ = call.query.shape
            rate = batch * heads * tokens**2 / statistics.median(ours) / 1e6
            yield width, micros(forward), micros(ours), ratio(ours, forward), rate

    table(
        "All statistics by the width of a head, B 8, H 16, N 1024, bf16",
        "D | SDPA µs | call µs | call / SDPA | scores/ns",
        rows(),
    )
