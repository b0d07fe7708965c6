"""What compiled kernels cost, by case and version of Triton: measured once, and written to a table.

``PYTHONPATH=.:tests python -m kernels.compiled_figures`` measures with the installed Triton and rewrites its
rows of ``compiled_figures.tsv``. ``tests/README.md`` says how to put another Triton beside it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from kernels.assembly import Assembly, compiled, problem_on_meta
from lightning_geo.kernels import STATISTICS, AttentionProblem
from lightning_geo.kernels.triton import Launch, launches
from lightning_geo.kernels.triton.constants import Dots
from lightning_geo.kernels.triton.tiles import shared_memory

__all__ = ["CASES", "OLDEST", "VERSION", "Case", "Cost", "cost_of", "costs_on_record", "options"]

#: The version of Triton that is installed, and the oldest that is supported: the one of torch 2.11.
VERSION, OLDEST = ".".join(triton.__version__.split(".")[:2]), "3.6"

BATCH, HEADS, TOKENS = 4, 12, 500  # no multiple of any tile

TABLE = Path(__file__).with_suffix(".tsv")


class Case(NamedTuple):
    """An attention call to compile, and the versions that compile it: the oldest Triton, any later one."""

    capability: int
    dtype: str
    width: int
    kind: str
    oldest: bool = True
    later: bool = True

    def problem(self) -> AttentionProblem:
        """The call, without data."""
        dtype = getattr(torch, self.dtype)
        return problem_on_meta(BATCH, HEADS, TOKENS, self.width, dtype, **options(self.kind))

    def shared_memory(self) -> int:
        """Bytes that the table of tiles promises to suffice."""
        held = Dots.of(self.width, False, torch.float32).held
        return shared_memory(held, getattr(torch, self.dtype), divmod(self.capability, 10))

    def launches(self) -> list[Launch]:
        """Its kernels."""
        return launches(self.problem(), divmod(self.capability, 10))[0]


def _cases() -> Iterator[Case]:
    # Hopper with the oldest Triton, as torch 2.11 has it there; older devices with a later one; both of them
    # for what has differed
    for width in (64, 128):
        for kind in ("plain", "causal", "padded", "softmax"):
            yield Case(90, "bfloat16", width, kind, oldest=True, later=kind == "causal")
        for kind in ("causal", "padded"):
            yield Case(80, "bfloat16", width, kind, oldest=False, later=True)
    yield Case(90, "bfloat16", 64, "unmarked", oldest=True, later=True)
    yield Case(90, "bfloat16", 64, "dense", oldest=True, later=True)
    yield Case(90, "bfloat16", 64, "bias", oldest=True, later=False)
    yield Case(90, "bfloat16", 64, "capped", oldest=True, later=False)
    yield Case(90, "bfloat16", 80, "padded", oldest=True, later=False)
    yield Case(90, "bfloat16", 80, "unmarked", oldest=True, later=True)
    yield Case(90, "bfloat16", 96, "causal", oldest=False, later=True)
    yield Case(90, "bfloat16", 160, "unmarked", oldest=True, later=True)
    yield Case(90, "bfloat16", 160, "dense", oldest=False, later=True)
    yield Case(90, "bfloat16", 192, "causal", oldest=True, later=True)
    yield Case(90, "bfloat16", 256, "causal", oldest=True, later=False)
    yield Case(90, "float16", 64, "causal", oldest=False, later=True)
    yield Case(90, "float32", 64, "causal", oldest=True, later=False)
    yield Case(90, "float32", 128, "unmarked", oldest=True, later=False)
    yield Case(80, "bfloat16", 96, "padded", oldest=False, later=True)
    yield Case(80, "float16", 64, "causal", oldest=False, later=True)
    yield Case(80, "float32", 128, "dense", oldest=False, later=True)
    yield Case(86, "bfloat16", 64, "padded", oldest=True, later=True)
    yield Case(86, "float32", 64, "bias", oldest=False, later=True)


CASES = tuple(_cases())


def options(kind: str) -> dict[str, Any]:
    """Masks, marks and requested statistics of a kind of attention call."""

    def flags(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bool, device="meta")

    common = {"sinks": torch.empty(HEADS, device="meta"), "special": flags(BATCH, TOKENS)}
    dense = flags(BATCH, 1, TOKENS, TOKENS)
    return {
        "plain": common,
        "causal": {**common, "right": 0},
        "padded": {**common, "masks": (flags(BATCH, 1, 1, TOKENS),), "query_mask": flags(BATCH, TOKENS)},
        "dense": {**common, "masks": (dense,)},
        "bias": {**common, "masks": (torch.empty(1, HEADS, TOKENS, TOKENS, device="meta"),)},
        "both": {**common, "masks": (torch.empty(1, HEADS, TOKENS, TOKENS, device="meta"), dense)},
        "capped": {**common, "softcap": 30.0, "right": 0},
        "softmax": {"requested": frozenset({"logsumexp", "entropy"})},
        "unmarked": {"requested": frozenset(STATISTICS) - {"special_mass"}},
    }[kind]


class Cost(NamedTuple):
    """Registers a thread, bytes of stack, instructions a score in the cheapest and dearest loop."""

    registers: int
    stack: int
    far: float
    cut: float


def cost_of(assembly: Assembly, launch: Launch) -> Cost:
    """Read it off a compiled kernel."""
    threads = 32 * launch.options["num_warps"]
    scores = launch.constants["BLOCK_M"] * launch.constants["BLOCK_N"] / threads
    loops = sorted(loop.length / scores for loop in assembly.main_loops)
    return Cost(assembly.registers, assembly.stack, round(loops[0], 2), round(loops[-1], 2))


def costs_on_record() -> dict[tuple[str, ...], Cost]:
    """The table: version, capability, dtype, width, kind and kernel -> cost."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines()[1:]]
    return {tuple(row[:6]): Cost(int(row[6]), int(row[7]), float(row[8]), float(row[9])) for row in rows}


def _measure() -> None:
    """Measure this version's cases, and write the table."""
    table = {key: cost for key, cost in costs_on_record().items() if key[0] != VERSION}
    for case in CASES:
        if case.oldest if VERSION == OLDEST else case.later:
            for launch in case.launches():
                name = launch.kernel.__name__.removesuffix("_kernel")
                if name in ("rows", "columns"):
                    assembly = compiled(launch, case.capability)
                    key = (VERSION, *map(str, case[:4]), name)
                    table[key] = cost_of(assembly, launch)
                    print(*key, *table[key], flush=True)
    head = "triton\tcapability\tdtype\twidth\tkind\tkernel\tregisters\tstack\tfar\tcut"
    TABLE.write_text(
        "\n".join([head, *("\t".join(map(str, (*k, *v))) for k, v in sorted(table.items()))]) + "\n"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TRITON_CACHE_DIR", folder)
        _measure()
