"""Compiles the Triton kernels for GPUs that are not there, and reads what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightning_geo.kernels.problem import AttentionProblem
from lightning_geo.kernels.triton import Launch

_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Loop:
    """Instructions between a backward branch and its target."""

    lines: tuple[str, ...]

    @property
    def length(self) -> int:
        return len(self.lines)

    def count(self, *names: str) -> int:
        return sum(any(re.search(rf"\b{name}\b", line) for name in names) for line in self.lines)


@dataclass(frozen=True)
class Assembly:
    """What ptxas made of a kernel."""

    registers: int
    stack: int
    shared: int
    lines: tuple[str, ...]
    loops: tuple[Loop, ...]

    def count(self, *names: str) -> int:
        """Instructions of these names, ``"HMMA"`` standing for ``HMMA.16816.F32``, too."""
        return Loop(self.lines).count(*names)

    @property
    def spills(self) -> int:
        return self.count("LDL", "STL")

    @property
    def main_loops(self) -> list[Loop]:
        """Loops without a loop inside that multiply matrices, in the order of the code."""
        return [loop for loop in self.loops if loop.count("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")]


def problem_on_meta(
    batch: int,
    heads: int,
    tokens: int,
    width: int,
    dtype: torch.dtype = torch.bfloat16,
    **options: Any,
) -> AttentionProblem:
    """A problem without data, for its launches."""
    query = torch.empty(batch, heads, tokens, width, dtype=dtype, device="meta")
    return AttentionProblem(query, query.clone(), width**-0.5, **options)


def _signature(launch: Launch) -> tuple[dict[str, Any], dict[Any, Any], dict[tuple[int, ...], Any]]:
    # as Triton's launcher specialises: ones are constants, multiples of 16 are known as such
    constants: dict[Any, Any] = dict(launch.constants)
    attributes: dict[tuple[int, ...], Any] = {}

    def kind_of(value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return type(value)(*(kind_of(part, (*path, i)) for i, part in enumerate(value)))
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[path] = [["tt.divisibility", 16]]
        if isinstance(value, Tensor):
            return _POINTERS[value.dtype]
        if isinstance(value, float):
            return "fp32"
        if value == 1:
            constants[path] = 1
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    signature = {
        name: "constexpr" if name in launch.constants else kind_of(launch.arguments[name], (position,))
        for position, name in enumerate(launch.kernel.arg_names)
    }
    return signature, constants, attributes


def binary(launch: Launch, capability: int) -> Any:
    """Compile a launch for a compute capability, 90 for 9.0."""
    source = ASTSource(launch.kernel, *_signature(launch))
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=dict(launch.options))


_known: dict[str, Assembly] = {}


def compiled(launch: Launch, capability: int) -> Assembly:
    """What ptxas makes of a launch; disassembled once, where launches are compiled to the same kernel."""
    kernel = binary(launch, capability)
    if kernel.hash not in _known:
        _known[kernel.hash] = _read(kernel)
    return _known[kernel.hash]


def _read(kernel: Any) -> Assembly:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])

        def run(tool: str, *arguments: str) -> str:
            command = [str(tools / tool), *arguments, str(file)]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        usage = run("cuobjdump", "--dump-resource-usage")
        listing = run("nvdisasm", "--print-code", "--no-dataflow")
    numbers = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    lines, loops = _parse(listing)
    return Assembly(numbers["REG"], numbers["STACK"], kernel.metadata.shared, lines, loops)


def _parse(listing: str) -> tuple[tuple[str, ...], tuple[Loop, ...]]:
    lines: list[str] = []
    labels: dict[str, int] = {}
    ranges: list[tuple[int, int]] = []
    for text in listing.splitlines():
        label = re.match(r"\s*(\.L_\w+):", text)
        if label:
            labels[label[1]] = len(lines)
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", text)
        if instruction:
            lines.append(instruction[1])
            branch = re.search(r"\bBRA\b.*\(?(\.L_\w+)\)?", instruction[1])
            if branch and branch[1] in labels:
                ranges.append((labels[branch[1]], len(lines)))
    inner = [
        (start, stop)
        for start, stop in ranges
        if not any(other != (start, stop) and start <= other[0] and other[1] <= stop for other in ranges)
    ]
    return tuple(lines), tuple(Loop(tuple(lines[start:stop])) for start, stop in sorted(inner))
