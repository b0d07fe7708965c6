"""Versions, clocks, and two rates that everything else is measured against."""

from __future__ import annotations

import platform
import statistics
import subprocess

import torch
import triton

from on_device.bench import Bench, table

__all__ = ["prepare"]


def prepare(bench: Bench) -> object:
    """Nothing has to be compiled."""
    return lambda: _run(bench)


def _run(bench: Bench) -> None:
    versions = f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    if bench.tiny:
        print(f"a CPU in the interpreter: figures mean nothing; {versions}")
        return
    device = torch.cuda.get_device_properties(0)
    print(
        f"{device.name}, capability {device.major}.{device.minor}, {device.multi_processor_count} SMs, "
        f"{device.total_memory / 2**30:.0f} GiB, shared memory {device.shared_memory_per_block_optin} B, "
        f"{versions}"
    )
    query = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,driver_version"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    print(f"{query}: {subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()}")
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy, product = bench.times(lambda: y.copy_(x), lambda: a @ a)
    table(
        "Rates",
        "copy, read and written TB/s | bf16 product TFLOP/s",
        [(2 * x.numel() / statistics.median(copy) / 1e9, 2 * 8192**3 / statistics.median(product) / 1e9)],
    )
