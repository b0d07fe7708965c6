"""The Triton kernels compiled for GPUs that need not be there: what ptxas made of them (``-m compiles``)."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from lightning_geo.kernels import MOMENTS, STREAM
from lightning_geo.kernels.triton import Launch, launches
from lightning_geo.kernels.triton.launch import unusable
from lightning_geo.kernels.triton.partial_moments import merge_launch
from lightning_geo.kernels.triton.sketch_launch import sketch_launch
from lightning_geo.kernels.triton.tiles import Tile, Tiles
from lightning_geo.kernels.triton.vectors import gram_launch, moments_launch, stream_launch

if unusable() is not None:
    pytest.skip(f"{unusable()}; it is for Linux only", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from kernels.assembly import Assembly, binary, compiled, problem_on_meta
from kernels.compiled_figures import (
    BATCH,
    CASES,
    HEADS,
    OLDEST,
    TOKENS,
    VERSION,
    Case,
    cost_of,
    costs_on_record,
)

pytestmark = pytest.mark.compiles

#: Bytes of shared memory that every device has.
LEAST_SHARED = 99 * 1024

#: What does not depend on the version is looked at once.
later = pytest.mark.skipif(VERSION == OLDEST, reason=f"compiled with a later Triton than {OLDEST}")


@pytest.fixture(scope="module", autouse=True)
def _no_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns, though it is passed
        yield


def check(assembly: Assembly, launch: Launch, capability: int, shared: int, stack: int = 0) -> None:
    """What every kernel that multiplies matrices owes to its device."""
    threads = 32 * launch.options["num_warps"]
    assert assembly.stack <= stack, f"a stack of {assembly.stack} bytes"
    assert stack or assembly.spills == 0, f"{assembly.spills} spills"
    assert assembly.shared <= shared, f"{assembly.shared} bytes of shared memory"
    assert assembly.registers * threads <= 65536 // 2, f"{assembly.registers} registers: no two programs fit"
    # a Hopper's own instruction takes 64 rows
    rows = launch.constants.get("BLOCK_M" if launch.kernel.__name__ == "rows_kernel" else "BLOCK_N", 64)
    unit = "HGMMA" if capability == 90 and rows >= 64 else "HMMA"
    assert assembly.count(unit), f"no {unit}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:4])))
def test_attention_kernels(case: Case) -> None:
    """No spills, shared memory as in the table of tiles, and the cost on record, give or take 5 %."""
    if not (case.oldest if VERSION == OLDEST else case.later):
        pytest.skip(f"compiled with another Triton than {VERSION}: .ci/run takes the oldest and a later one")
    on_record = costs_on_record()
    for launch in case.launches():
        name = launch.kernel.__name__.removesuffix("_kernel")
        assembly = compiled(launch, case.capability)
        if name not in ("rows", "columns"):
            assert assembly.spills == 0
            if name == "finish":  # a row to each thread
                assert launch.constants["BLOCK"] == 32 * launch.options["num_warps"]
                assert len(assembly.lines) < 1500
            continue
        if case.capability == 90 and case.dtype != "float32":  # a product for every 16 features and 64 rows
            side = launch.constants["BLOCK_M" if name == "rows" else "BLOCK_N"]
            for loop in assembly.main_loops:
                assert loop.count("HGMMA") == -(-case.width // 16) * side // 64
        known = on_record.get((VERSION, *map(str, case[:4]), name))
        check(assembly, launch, case.capability, case.shared_memory(), 0 if known is None else known.stack)
        if known is not None:
            cost = cost_of(assembly, launch)
            assert cost.far <= 1.05 * known.far, f"{name}: {cost}, on record {known}"
            assert cost.cut <= 1.05 * known.cut, f"{name}: {cost}, on record {known}"


@later
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 1, 1, 16), {}),
        ((1, 1, 1, 16), {"right": 1, "left": 1, "masks": "dense"}),
        ((1, 1, 17, 1), {"right": 1, "left": 1, "rows": 1}),
        ((3, 1, 1, 24), {"right": 0, "rows": 1}),
    ],
    ids=str,
)
def test_sizes_of_one_are_constants_to_the_compiler(
    shape: tuple[int, int, int, int], options: dict[str, Any]
) -> None:
    """The interpreter does not see these: there, a one is as any other number."""
    options, (batch, _, tokens, _) = dict(options), shape
    if "masks" in options:
        options["masks"] = (torch.empty(1, 1, tokens, tokens, dtype=torch.bool, device="meta"),)
        options["query_mask"] = torch.empty(batch, tokens, dtype=torch.bool, device="meta")
    if "rows" in options:
        options["rows"] = torch.empty(batch, 1, dtype=torch.int64, device="meta")
    for launch in launches(problem_on_meta(*shape, **options), (9, 0))[0]:
        assert binary(launch, 90).asm["cubin"]
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    assert binary(moments_launch(x, None, frozenset(MOMENTS))[0], 90).asm["cubin"]
    assert binary(stream_launch(x[0], None, x[0], frozenset(STREAM))[0], 90).asm["cubin"]


@later
def test_blackwell() -> None:
    """It compiles; how it should be tiled, a Blackwell has to say."""
    case = Case(100, "bfloat16", 64, "causal")
    for launch in case.launches():
        if launch.kernel.__name__ in ("rows_kernel", "columns_kernel"):
            assembly = compiled(launch, 100)
            assert assembly.count(r"UTC\w*MMA")
            assert assembly.shared <= case.shared_memory()


@later
def test_the_check_fails_on_a_tile_that_spills() -> None:
    large = Tile(128, 128, warps=4)
    problem = problem_on_meta(BATCH, HEADS, TOKENS, 128, right=0)
    todo = {launch.kernel.__name__: launch for launch in launches(problem, (9, 0), Tiles(large, large))[0]}
    rows = todo["rows_kernel"]
    with pytest.raises(AssertionError, match="stack of"):
        check(compiled(rows, 90), rows, 90, 2**20)


@later
def test_float32_vectors_of_256_features_fit_into_shared_memory() -> None:
    case = Case(90, "float32", 256, "causal")
    todo = {launch.kernel.__name__: launch for launch in case.launches()}
    rows, columns = (compiled(todo[f"{name}_kernel"], 90) for name in ("rows", "columns"))
    assert max(rows.shared, columns.shared) <= case.shared_memory()
    assert columns.spills == 0


@pytest.mark.parametrize("width", [64, 128])
def test_moments_kernel(width: int) -> None:
    capability = 90 if VERSION == OLDEST else 80
    x = torch.empty(8, TOKENS, HEADS, width, dtype=torch.bfloat16, device="meta").transpose(1, 2)
    launch, _, _ = moments_launch(x, None, frozenset(MOMENTS))
    assembly = compiled(launch, capability)
    assert assembly.spills == 0
    assert assembly.shared <= LEAST_SHARED
    assert assembly.count("HMMA", "HGMMA")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(90, torch.bfloat16)]
    if VERSION == OLDEST
    else [(90, torch.bfloat16), (80, torch.float16), (80, torch.float32)],
    ids=str,
)
def test_gram_kernel(capability: int, dtype: torch.dtype) -> None:
    """Second moments are multiplied by tensor cores, whatever the type: 4 or 6 bfloat16 products a number."""
    x = torch.empty(4, 1, TOKENS, 768, dtype=dtype, device="meta")
    launch, _ = gram_launch(x, x[:, 0, :, 0] > 0, divmod(capability, 10))
    assembly = compiled(launch, capability)
    assert assembly.spills == 0
    assert assembly.shared <= LEAST_SHARED
    (loop,) = assembly.main_loops
    assert loop.count("HGMMA" if capability == 90 else "HMMA")
    threads = 32 * launch.options["num_warps"]
    numbers = launch.constants["BLOCK"] ** 2 * launch.constants["ROWS"] / threads
    assert loop.length / numbers < (0.32 if capability == 90 else 1.15)


@pytest.mark.parametrize(
    ("heads", "width", "shifted"), [(120, 64, False), (128, 128, False), (10, 768, True)]
)
def test_merge_kernel(heads: int, width: int, shifted: bool) -> None:
    counts, sums, products = (
        torch.empty(8, *shape, device="meta") for shape in ((), (heads, width), (heads, width, width))
    )
    launch, _ = merge_launch(counts, sums, products, sums[0] if shifted else None)
    assembly = compiled(launch, 90 if VERSION == OLDEST else 80)
    assert assembly.spills == 0
    # it does little but read: four programs at least fit on a multiprocessor, and read whole rows of a block
    assert assembly.registers <= 128
    assert assembly.count(r"LDG\.E\.\S*128\S*") >= 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sketch_kernel(dtype: torch.dtype) -> None:
    """Tokens, split into three bfloat16 numbers each, are multiplied by tensor cores."""
    capability = 90 if VERSION == OLDEST else 80
    x, draws = (
        torch.empty(8192, 2, 4096, dtype=dtype, device="meta"),
        torch.empty(2, 480, 8192, device="meta"),
    )
    launch, *_ = sketch_launch(x, x[:, 0, 0] > 0, draws, None, divmod(capability, 10))
    assembly = compiled(launch, capability)
    assert assembly.spills == 0
    assert assembly.shared <= LEAST_SHARED
    (loop,) = assembly.main_loops
    assert loop.count("HGMMA", "HMMA") % 3 == 0


@later
@pytest.mark.parametrize("width", [768, 4096])
def test_stream_kernel(width: int) -> None:
    x = torch.empty(8, TOKENS, width, dtype=torch.bfloat16, device="meta")
    launch, *_ = stream_launch(x, x[..., 0] > 0, x, frozenset(STREAM))
    assembly = compiled(launch, 90)
    assert assembly.spills == 0
    assert assembly.shared <= LEAST_SHARED
    # whole vectors at a time: 16 bytes a thread and load
    assert assembly.count(r"LDG\.E\.\S*128\S*") >= 2
