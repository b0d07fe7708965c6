"""What the attention statistics cost on a CPU, beside the attention that they describe.

Ratios are to ``scaled_dot_product_attention`` on the same tensors, each pair taken in turn in one process;
the median of them is shown. ``dense`` is what one writes without this package: softmax, then each statistic.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.functional import attention_statistics

HEADS, WIDTH = 12, 64


def dense(query: Tensor, key: Tensor) -> list[Tensor]:
    """The full set from the [B, H, N, N] matrix."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    p = scores.softmax(-1)
    position = torch.arange(p.shape[-1])
    ahead = (position - position[:, None]).float()
    return [
        scores.logsumexp(-1), torch.special.entr(p).sum(-1), p.square().sum(-1), p.amax(-1), scores.amax(-1),
        p.diagonal(0, -2, -1), p.diagonal(-1, -2, -1), p.diagonal(1, -2, -1), p[..., 0],
        (p * (ahead < 0)).sum(-1), (p * (ahead > 0)).sum(-1), (p * ahead.abs()).sum(-1), p.sum(-2),
    ]  # fmt: skip


WAYS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "chunked": lambda q, k: attention_statistics(q, k, backend="chunked"),
    "compiled": lambda q, k: attention_statistics(q, k, backend="compiled"),
    "entropy alone": lambda q, k: attention_statistics(q, k, backend="chunked", statistics="entropy"),
    "dense": dense,
}


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(
    batch: int, length: int, ways: Sequence[str], repeats: int, heads: int = HEADS
) -> dict[str, float]:
    """Median over pairs of each way's time by that of the attention right before it."""
    query, key, value = torch.randn(3, batch, heads, length, WIDTH)
    result = {}
    for name in ways:
        way, pairs = WAYS[name], []
        way(query, key)  # warm: compiled kernels, pages, caches
        for _ in range(repeats):
            attention = seconds(lambda: F.scaled_dot_product_attention(query, key, value))
            pairs.append(seconds(lambda way=way: way(query, key)) / attention)  # type: ignore[misc]
        result[name] = statistics.median(pairs)
    return result


def extra_memory(batch: int, length: int, heads: int) -> float:
    """MiB that a chunked call adds to a fresh process at most."""
    command = [sys.executable, __file__, *map(str, (batch, length, heads))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _extra_memory(batch: int, length: int, heads: int) -> float:
    query, key = torch.randn(2, batch, heads, length, WIDTH)
    attention_statistics(query[:1, :1, :8], key[:1, :1, :8])  # code and thread pools are no part of it
    before = _memory("VmRSS")
    attention_statistics(query, key)
    return _memory("VmHWM") - before


def _memory(kind: str) -> float:
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main(repeats: int = 15) -> None:
    """Print the tables."""
    threads = torch.get_num_threads()
    print(f"\nFull set with received mass / SDPA forward; fp32, 12 heads of 64, {threads} threads\n")
    print("| N | B | chunked | compiled | entropy alone | dense | dense / chunked | extra memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for length in (128, 512, 1024):
        batch = 4096 // length
        memory = extra_memory(batch, length, HEADS)
        found = ratios(batch, length, list(WAYS), repeats)
        cells = [f"{found[name]:.2f}" for name in WAYS]
        speedup = found["dense"] / found["chunked"]
        print(f"| {length} | {batch} | {' | '.join(cells)} | {speedup:.1f} | {memory:.0f} MiB |", flush=True)
    print("\nHow the cost grows: one sequence, chunked / SDPA forward\n")
    print("| N | heads | ratio | seconds | extra memory |")
    print("| --- | --- | --- | --- | --- |")
    for length, heads in ((128, 12), (512, 12), (2048, 12), (2048, 4), (2048, 32), (8192, 12), (16384, 4)):
        query, key = torch.randn(2, 1, heads, length, WIDTH)
        memory = extra_memory(1, length, heads)
        ratio = ratios(1, length, ["chunked"], 3 if length > 4096 else repeats, heads)["chunked"]
        took = seconds(lambda q=query, k=key: attention_statistics(q, k))  # type: ignore[misc]
        print(f"| {length} | {heads} | {ratio:.2f} | {took:.3f} | {memory:.0f} MiB |", flush=True)


if __name__ == "__main__":
    print(_extra_memory(*map(int, sys.argv[1:])))
