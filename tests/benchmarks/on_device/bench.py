"""Times functions on a device and prints what comes out as tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["Bench", "host_micros", "micros", "ratio", "table"]


class Bench:
    """Times functions side by side, so that what slows one slows all.

    Args:
        tiny: Small sizes on a CPU in Triton's interpreter, to see that every line runs.
        repeats: Rounds.
    """

    def __init__(self, *, tiny: bool, repeats: int = 30) -> None:
        self.tiny = tiny
        self.device = "cpu" if tiny else "cuda"
        self.repeats = 1 if tiny else repeats

    def times(self, *functions: Callable[[], object]) -> list[list[float]]:
        """Milliseconds of each function on the device, by round."""
        for _ in range(0 if self.tiny else 3):
            for function in functions:
                function()
        rounds = [[self._once(function) for function in functions] for _ in range(self.repeats)]
        return [list(column) for column in zip(*rounds, strict=True)]

    def _once(self, function: Callable[[], object]) -> float:
        if self.tiny:
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        # cold caches, as in a training step; and the device waits, so that launches are not what is timed
        self._flush().zero_()
        torch.cuda._sleep(1_000_000)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def _flush(self) -> Tensor:
        if not hasattr(self, "_buffer"):
            self._buffer = torch.empty(256 << 20, dtype=torch.uint8, device=self.device)
        return self._buffer

    def wall(self, *functions: Callable[[], object], repeats: int | None = None) -> list[list[float]]:
        """Milliseconds on the host's clock until the device is done, by round."""
        rounds = []
        for _ in range((repeats or self.repeats) + 1):
            rounds.append([self._waited(function) for function in functions])
        return [list(column) for column in zip(*rounds[1:], strict=True)]

    def _waited(self, function: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return 1e3 * (time.perf_counter() - start)

    def wait(self) -> None:
        """Wait until the device is done."""
        if not self.tiny:
            torch.cuda.synchronize()

    def memory(self, function: Callable[[], object]) -> float:
        """MiB that a function needs at its peak, results included."""
        if self.tiny:
            function()
            return float("nan")
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def host_micros(bench: Bench, function: Callable[[], object]) -> float:
    """Microseconds until a function returns, whatever the device has left to do; the median of 20."""
    taken = []
    for _ in range(1 if bench.tiny else 20):
        bench.wait()
        start = time.perf_counter()
        function()
        taken.append(1e6 * (time.perf_counter() - start))
    bench.wait()
    return statistics.median(taken)


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Median of paired ratios."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def micros(times: Sequence[float]) -> float:
    """Median of milliseconds, as microseconds."""
    return 1e3 * statistics.median(times)


def table(title: str, header: str, rows: Iterable[Iterable[object]]) -> None:
    """Print Markdown, row by row, so that what is known is on paper if the next row fails."""
    names = header.split(" | ")
    print(f"\n### {title}\n\n| {header} |\n|{' --- |' * len(names)}", flush=True)
    for row in rows:
        cells = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)
        print(f"| {' | '.join(cells)} |", flush=True)
