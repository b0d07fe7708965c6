"""Every kernel of an attention call, beside the forward that it watches."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from lightning_geo import kernels
from lightning_geo.kernels import STATISTICS
from lightning_geo.kernels.triton import Launch, launches
from on_device.bench import Bench, host_micros, micros, ratio, table
from on_device.calls import PADDINGS, SHAPES, TINY, flash, problem

__all__ = ["prepare"]

ALL = frozenset(STATISTICS)
SETS = {
    "logsumexp, entropy": frozenset(("logsumexp", "entropy")),
    "all but received": ALL - {"received"},
    "all": ALL,
}


def prepare(bench: Bench) -> object:
    """Compile the kernels of every shape, padding and set of statistics."""
    shapes = TINY if bench.tiny else SHAPES
    calls = []
    for name, shape in shapes.items():
        for padding in PADDINGS:
            for requested in SETS if padding == "none" else ("all",):
                if padding == "matrix" and shape.tokens > 4096:
                    continue  # nobody makes such a matrix
                calls.append((name, shape, padding, requested))
    for _, shape, padding, requested in calls:
        small = shape._replace(batch=1)
        kernels.attention(problem(bench, small, padding, SETS[requested]), "triton")
    return lambda: _run(bench, calls)


def _started(launch: Launch) -> Any:
    """Run a launch; what was compiled for it."""
    return launch.kernel[(launch.programs,)](**launch.arguments, **launch.constants, **launch.options)


def _run(bench: Bench, calls: list[Any]) -> None:
    compiled: list[tuple[object, ...]] = []

    def rows() -> Any:
        for name, shape, padding, requested in calls:
            call = problem(bench, shape, padding, SETS[requested])
            capability = (9, 0) if bench.tiny else torch.cuda.get_device_capability()
            todo, _ = launches(call, capability)
            for launch in todo:
                kernel = _started(launch)
                if kernel is not None:
                    resources = kernel.n_regs, kernel.n_spills, kernel.metadata.shared
                    name_of_kernel = launch.kernel.__name__
                    compiled.append((name, padding, requested, name_of_kernel, launch.programs, *resources))
            whole = functools.partial(kernels.attention, call, "triton")
            forward, ours, *each = bench.times(
                flash(bench, call, shape.causal), whole, *(launch.run for launch in todo)
            )
            scores = shape.batch * shape.heads * shape.tokens**2 / (2 if shape.causal else 1)
            names = (launch.kernel.__name__.removesuffix("_kernel") for launch in todo)
            yield (
                name, padding, requested, round(micros(forward)),
                " + ".join(f"{n} {micros(t):.0f}" for n, t in zip(names, each, strict=True)),
                round(micros(ours)), ratio(ours, forward), round(host_micros(bench, whole)),
                scores / statistics.median(ours) / 1e6,
            )  # fmt: skip

    table(
        "Statistics of one attention call, bf16, beside the SDPA forward of the same call",
        "call | padding | statistics | SDPA µs | kernels µs | call µs | call / SDPA | host µs | scores/ns",
        rows(),
    )
    table(
        "What was compiled",
        "call | padding | statistics | kernel | programs | registers | spills | shared B",
        compiled,
    )
