"""Statistics of vectors as a share of the device's copy bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_geo import kernels
from lightning_geo.kernels import MOMENTS, STREAM
from on_device.bench import Bench, table

__all__ = ["prepare"]


def prepare(bench: Bench) -> object:
    """Compile the kernels."""
    cases = list(_cases(bench))
    for _, function, _, _ in cases:
        function()
    return lambda: _run(bench, cases)


def _cases(bench: Bench) -> Any:
    batch, tokens = (1, 40) if bench.tiny else (32, 2048)
    for width in (768, 4096):
        x = torch.randn(batch, tokens, width, device=bench.device).to(torch.bfloat16)
        for name, before in (("stream", None), ("stream with the block's input", torch.randn_like(x))):

            def stream(x: Tensor = x, before: Tensor | None = before) -> object:
                return kernels.stream_statistics(x, None, before, frozenset(STREAM), "triton")

            yield f"{name}, d {width}", stream, x, 1 if before is None else 2
    for width in (64, 128):
        x = torch.randn(batch, tokens, 12, width, device=bench.device).to(torch.bfloat16).transpose(1, 2)
        for requested in (MOMENTS, ("norm", "directions")):

            def moments(x: Tensor = x, requested: tuple[str, ...] = requested) -> object:
                return kernels.head_moments(x, None, frozenset(requested), "triton")

            yield f"heads' {', '.join(requested)}, D {width}", moments, x, 1
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(batch, 1, tokens // 4, 768, device=bench.device).to(dtype)

        def gram(x: Tensor = x) -> object:
            return kernels.head_moments(x, None, frozenset(("scatter",)), "triton")

        yield f"Gram matrix of all heads' outputs, d 768, {dtype}, {batch} × {tokens // 4}", gram, x, 1
    x = torch.randn(batch * tokens // 8, 1, 4096, device=bench.device).to(torch.bfloat16)
    draws = torch.randint(2, (1, 480, len(x)), device=bench.device).float()

    def sketch(x: Tensor = x, draws: Tensor = draws) -> object:
        return kernels.sketch(x, None, draws, None, "triton")

    yield f"sketch of all heads' outputs, 480 rows, d 4096, {len(x)} tokens", sketch, x, 1


def _run(bench: Bench, cases: list[tuple[str, Callable[[], object], Tensor, int]]) -> None:
    def rows() -> Any:
        for name, function, x, reads in cases:
            out = torch.empty_like(x)
            copy, ours = bench.times(lambda x=x, out=out: out.copy_(x), function)
            # a copy moves its bytes twice, a read once
            share = statistics.median(c * reads / 2 / o for c, o in zip(copy, ours, strict=True))
            yield name, 1e3 * statistics.median(ours), 1e3 * statistics.median(copy), f"{share:.0%}"

    table(
        "Statistics of vectors, 32 × 2048 tokens",
        "what | µs | copy of the vectors µs | share of the copy's bandwidth",
        rows(),
    )
