"""Eigenvalues and singular values of a sample's matrices: on the device, on the host, in its threads."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from on_device.bench import Bench, table

__all__ = ["prepare"]


def prepare(bench: Bench) -> object:
    """Nothing has to be compiled."""
    return lambda: _run(bench)


def _run(bench: Bench) -> None:
    sizes = {
        "eigh of 576 × 64², BERT-base": (torch.linalg.eigh, (576, 64, 64), torch.float32),
        "eigh of 640 × 128², 8 layers of Llama": (torch.linalg.eigh, (640, 128, 128), torch.float32),
        "svdvals of 144 × 64 × 8": (torch.linalg.svdvals, (144, 64, 8), torch.float64),
        "qr of 144 × 64 × 8": (torch.linalg.qr, (144, 64, 8), torch.float64),
    }

    def rows() -> Any:
        for name, (function, shape, dtype) in sizes.items():
            x = torch.randn(*(min(n, 8) if bench.tiny else n for n in shape), dtype=dtype)
            if shape[1] == shape[2]:
                x = x @ x.mT
            there = x.to(bench.device)
            (device,) = bench.wall(lambda f=function, y=there: f(y), repeats=2)
            own = torch.get_num_threads()
            host = _seconds(lambda f=function, y=x: f(y))
            torch.set_num_threads(1)
            single = _seconds(lambda f=function, y=x: f(y))
            pooled = _seconds(lambda f=function, y=x: _in_threads(f, y))
            torch.set_num_threads(own)
            yield name, statistics.median(device), host, single, pooled

    table(
        f"Decompositions, ms, {os.cpu_count()} cores",
        "what | device | host, torch's threads | host, one thread | host, 8 threads of their own",
        rows(),
    )


def _seconds(function: Callable[[], object]) -> float:
    function()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def _in_threads(function: Callable[[Tensor], object], x: Tensor) -> None:
    def single(part: Tensor) -> object:
        torch.set_num_threads(1)  # of this thread
        return function(part)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(single, x.chunk(8)))
