"""The Triton kernels on a CUDA device: the whole table of cases, determinism, memory errors."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import test_vectors as vectors
from kernels.calls import problem_of
from kernels.cases import CASES
from kernels.comparison import as_arrays, assert_agree
from lightning_geo import kernels
from lightning_geo.functional import attention_statistics
from lightning_geo.kernels import MOMENTS, STREAM, AttentionProblem, AttentionStatistics
from lightning_geo.kernels.reference import reference
from lightning_geo.kernels.triton import attention, missing, unsupported
from lightning_geo.kernels.triton import vectors as vectors_on_triton
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import select
from lightning_geo.observe import Tap
from lightning_geo.utils.device_time import Stopwatch

_reason = missing(torch.device("cuda")) if torch.cuda.is_available() else "no CUDA device"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_reason is not None, reason=str(_reason))]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TAKEN = [name for name in CASES if not name.startswith(("block_", "no_")) and name != "float64"]


def moved(problem: AttentionProblem, device: str) -> AttentionProblem:
    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(move(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        # strides of its own: a copy to another device keeps only dense ones
        base = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        return base.copy_(value) if 0 not in value.stride() else value.to(device)

    fields = {field.name: move(getattr(problem, field.name)) for field in dataclasses.fields(problem)}
    return AttentionProblem(**fields)


def on_cpu(statistics: AttentionStatistics) -> AttentionStatistics:
    values = {f.name: getattr(statistics, f.name) for f in dataclasses.fields(statistics)}
    return AttentionStatistics(**{name: None if v is None else v.cpu() for name, v in values.items()})


def rounded(name: str, dtype: torch.dtype) -> AttentionProblem:
    problem = problem_of(CASES[name]())
    if {problem.query.dtype, problem.key.dtype} == {torch.float32}:
        problem = dataclasses.replace(problem, query=problem.query.to(dtype), key=problem.key.to(dtype))
    return problem


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_agrees_with_the_oracle(name: str, dtype: torch.dtype) -> None:
    problem = rounded(name, dtype)
    there = moved(problem, "cuda")
    assert unsupported("attention", there) is None
    assert_agree(on_cpu(attention(there)), as_arrays(reference(problem)))


@pytest.mark.parametrize("width", [16, 40, 64, 80, 96, 128, 160, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [197, 515])
def test_tiles_of_the_table(width: int, dtype: torch.dtype, tokens: int) -> None:
    """Whole and cut tiles of the sizes that are really used."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 4, tokens, width, generator=generator).to(dtype)
    keep = torch.arange(tokens)[None] < tokens - 30
    rows = torch.randint(0, tokens, (1, 100), generator=generator)
    for options in (
        {},
        {"is_causal": True, "special": ~keep},
        {"mask": keep[:, None, None], "query_mask": keep},
        {"mask": torch.rand(tokens, tokens, generator=generator) > 0.3},
        {"mask": torch.randn(1, 4, tokens, tokens, generator=generator), "softcap": 20.0},
        {"is_causal": True, "queries": rows, "window": 60},
    ):
        problem = problem_of({"query": query, "key": key, **options})
        assert_agree(on_cpu(attention(moved(problem, "cuda"))), as_arrays(reference(problem)))


@pytest.mark.parametrize("name", ["causal_long", "several_masks", "sinks", "bfloat16", "long_left_padding"])
def test_two_runs_agree_bitwise(name: str) -> None:
    problem = moved(rounded(name, torch.bfloat16), "cuda")
    first, second = as_arrays(on_cpu(attention(problem))), as_arrays(on_cpu(attention(problem)))
    for field, values in first.items():
        assert values.tobytes() == second[field].tobytes(), field


@pytest.mark.parametrize("name", vectors.CASES)
def test_vectors_agree_with_the_oracle(name: str) -> None:
    x, mask = vectors.CASES[name]()
    there, where = x.cuda(), None if mask is None else mask.cuda()

    def on_cpu(result: Any) -> Any:
        fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        return type(result)(**{name: None if v is None else v.cpu() for name, v in fields.items()})

    wanted = frozenset(MOMENTS)
    if vectors_on_triton.unsupported("head_moments", there, where, wanted) is None:
        got = on_cpu(vectors_on_triton.head_moments(there, where, wanted))
        vectors.assert_agree(got, kernels.head_moments(x, mask, wanted, "reference"))
        apart, together = vectors.layered(x)
        got = on_cpu(vectors_on_triton.head_moments(apart.cuda(), where, wanted))
        vectors.assert_agree(got, kernels.head_moments(together, mask, wanted, "reference"))
    stream = frozenset(STREAM)
    got = on_cpu(vectors_on_triton.stream_statistics(there[:, 0], where, there[:, 0].flip(-1), stream))
    expected = kernels.stream_statistics(x[:, 0], mask, x[:, 0].flip(-1), stream, "chunked")
    vectors.assert_agree(got, expected, 1e-4)


@pytest.mark.parametrize("name", vectors.WIDE)
def test_the_scatter_of_wide_vectors_keeps_its_digits(name: str) -> None:
    x, mask = vectors.WIDE[name]()
    there, where = x.cuda(), None if mask is None else mask.cuda()
    assert vectors_on_triton.unsupported("head_moments", there, where, frozenset({"scatter"})) is None
    got = kernels.head_moments(there, where, frozenset({"scatter"}), "triton")
    vectors.assert_scatter_agrees(got, x, mask)
    again = kernels.head_moments(there, where, frozenset({"scatter"}), "triton")
    assert torch.equal(got.scatter, again.scatter)
    apart, together = vectors.layered(x)
    got = kernels.head_moments(apart.cuda(), where, frozenset({"scatter"}), "triton")
    vectors.assert_scatter_agrees(got, together, mask)


@pytest.mark.parametrize("name", [*vectors.CASES, *vectors.WIDE])
def test_sketches_agree_with_the_oracle(name: str) -> None:
    def on_device(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        there = (None if x is None else x.cuda() for x in tensors)
        return tuple(x.cpu() for x in kernels.sketch(*there, "triton"))

    vectors.assert_sketches_agree(on_device, *vectors.sketched({**vectors.CASES, **vectors.WIDE}[name]))


def test_the_scatter_of_as_many_tokens_as_a_layer_has() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1, 512, 768, generator=generator) + 3.0 * torch.randn(768, generator=generator)
    mask = torch.arange(512) >= torch.randint(0, 400, (32, 1), generator=generator)  # padding comes first
    x = x.bfloat16()
    got = kernels.head_moments(x.cuda(), mask.cuda(), frozenset({"scatter"}), "triton")
    vectors.assert_scatter_agrees(got, x, mask)


def test_positions_are_exact_in_long_rows() -> None:
    keys = 70_000
    query, key = torch.full((1, 1, 1, 16), 5.0), torch.zeros(1, 1, keys, 16)
    key[0, 0, 65_432] = 5.0
    got = attention_statistics(query.cuda().bfloat16(), key.cuda().bfloat16(), backend="triton")
    assert got.attention_distance is not None
    assert abs(got.attention_distance.item() - 65_432) < 0.1


SANITIZED = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import torch
from gpu.test_device import moved, rounded
from lightning_geo.kernels.triton import attention
for name in ("causal_long", "several_masks", "mask_full", "special_tokens_grouped", "window_past_the_keys"):
    attention(moved(rounded(name, torch.bfloat16), "cuda"))
torch.cuda.synchronize()
"""


def test_a_stopwatch_counts_its_stretches_alone() -> None:
    watch, cycles = Stopwatch(), 20_000_000

    def seconds(own: int) -> float:
        torch.cuda._sleep(cycles)  # of training
        started = watch.start()
        torch.cuda._sleep(own)
        watch.stop(started)
        before = watch.seconds
        torch.cuda.synchronize()
        return before

    first = seconds(cycles)
    assert 0.005 < first < 0.05
    assert seconds(3 * cycles) / first == pytest.approx(4, rel=0.2)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.project = nn.Linear(64, 192)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_graph_that_is_captured_while_a_sample_is_taken_stays_the_models_own() -> None:
    model, x = _Attention().cuda(), torch.randn(2, 24, 64, device="cuda")
    measurement = Measurement({"": Tap(model)}, select("entropy"))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), measurement.observe():
        expected = model(x)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = model(x)
    result.zero_()
    graph.replay()
    torch.testing.assert_close(result, expected)
    assert not measurement.failures
    assert (measurement.coverage.seen, measurement.coverage.measured) == (2, 1)
    assert "CUDA graph" in measurement.reasons
    assert measurement.compute().stacks


def test_the_sanitizer_finds_nothing() -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    tests = Path(__file__).parents[1]
    program = SANITIZED.format(tests=str(tests), root=str(tests.parent))
    run = subprocess.run(
        [sanitizer, "--tool", "memcheck", "--error-exitcode", "1", sys.executable, "-c", program],
        capture_output=True, text=True, check=False,
        # every tensor an allocation of its own: reading past one is then seen
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )  # fmt: skip
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    assert "0 errors" in run.stdout
