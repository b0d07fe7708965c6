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
from typing import NamedTuple

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
    before = process_memory("VmRSS")
    attention_statistics(query, key)
    return process_memory("VmHWM") - before


def process_memory(kind: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main(repeats: int = 15, plot: str | None = None) -> None:
    """Print the tables; draw the second one where asked to."""
    threads = torch.get_num_threads()
    print(f"\nFull set with received mass / SDPA forward; fp32, 12 heads of 64, {threads} threads\n")
    print("| N | B | chunked | entropy alone | dense | dense / chunked | extra memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for length in (128, 512, 1024):
        batch = 4096 // length
        memory = extra_memory(batch, length, HEADS)
        found = ratios(batch, length, list(WAYS), repeats)
        cells = [f"{found[name]:.2f}" for name in WAYS]
        speedup = found["dense"] / found["chunked"]
        print(f"| {length} | {batch} | {' | '.join(cells)} | {speedup:.1f} | {memory:.0f} MiB |", flush=True)
    print("\nHow the cost grows: one sequence, chunked\n")
    print("| N | heads | seconds | SDPA forward | 256 rows alone | extra memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    points = [growth(length, 12, 5) for length in (128, 256, 512, 1024, 2048, 4096)]
    points += [growth(length, 4, 3) for length in (8192, 16384)]
    points += [growth(1024, heads, 5) for heads in (4, 32)]
    if plot is not None:
        draw(points, plot)


class Point(NamedTuple):
    """Medians of seconds: the full set, the attention itself, the full set of 256 rows."""

    length: int
    heads: int
    statistics: float
    attention: float
    rows: float


def growth(length: int, heads: int, repeats: int) -> Point:
    """Measure one sequence and print its row."""
    query, key, value = torch.randn(3, 1, heads, length, WIDTH)
    rows = torch.randperm(length)[None, :256]
    ways: list[Callable[[], object]] = [
        lambda: attention_statistics(query, key),
        lambda: F.scaled_dot_product_attention(query, key, value),
        lambda: attention_statistics(query, key, queries=rows),
    ]
    took = [[seconds(way) for way in ways] for _ in range(repeats + 1)][1:]
    point = Point(length, heads, *(statistics.median(column) for column in zip(*took, strict=True)))
    memory = extra_memory(1, length, heads)
    cells = " | ".join(f"{value:.4f}" for value in point[2:])
    print(f"| {length} | {heads} | {cells} | {memory:.0f} MiB |", flush=True)
    return point


def draw(points: Sequence[Point], path: str) -> None:
    """The points with 12 heads, and those with 4, over the length."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), dpi=110)
    labels = {"statistics": "all statistics", "attention": "SDPA forward", "rows": "all statistics, 256 rows"}
    for (field, label), colour in zip(labels.items(), ("C0", "0.4", "C1"), strict=True):
        first = {point.length: point for point in reversed(points)}  # one of each length
        ordered = sorted(first.values(), key=lambda point: point.length)
        # four heads by twelve: per head, so that one line holds both
        line = [(p.length, getattr(p, field) / p.heads * 1e3) for p in ordered]
        axes.plot(*zip(*line, strict=True), marker="o", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="sequence length", ylabel="milliseconds per head")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    print(_extra_memory(*map(int, sys.argv[1:])))
