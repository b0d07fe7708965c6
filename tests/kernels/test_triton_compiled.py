"""The Triton kernels compiled for GPUs that need not be there: what ptxas made of them."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

from lightning_geo.kernels import MOMENTS, STATISTICS, STREAM
from lightning_geo.kernels.triton import Launch, launches
from lightning_geo.kernels.triton.tiles import Tile, Tiles
from lightning_geo.kernels.triton.vectors import moments_launch, stream_launch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: it is for Linux only", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from kernels.assembly import Assembly, binary, compiled, problem_on_meta

pytestmark = pytest.mark.slow

BATCH, HEADS, TOKENS = 4, 12, 500  # no multiple of any tile


@pytest.fixture(scope="module", autouse=True)
def _no_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns, though it is passed
        yield


def options(kind: str) -> dict[str, Any]:
    def flags(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bool, device="meta")

    common = {"sinks": torch.empty(HEADS, device="meta"), "special": flags(BATCH, TOKENS)}
    if kind == "plain":
        return common
    if kind == "causal":
        return {**common, "right": 0}
    padded = {**common, "masks": (flags(BATCH, 1, 1, TOKENS),), "query_mask": flags(BATCH, TOKENS)}
    if kind == "padded":
        return padded
    if kind == "dense":
        return {**common, "masks": (flags(BATCH, 1, TOKENS, TOKENS),)}
    if kind == "bias":
        return {**common, "masks": (torch.empty(1, HEADS, TOKENS, TOKENS, device="meta"),)}
    if kind == "capped":
        return {**common, "softcap": 30.0, "right": 0}
    raise ValueError(kind)


def check(assembly: Assembly, launch: Launch, capability: int) -> None:
    """What every kernel that multiplies matrices owes to its device."""
    threads = 32 * launch.options["num_warps"]
    assert assembly.stack == 0, f"a stack of {assembly.stack} bytes"
    assert assembly.spills == 0, f"{assembly.spills} spills"
    assert assembly.shared <= 99 * 1024, f"{assembly.shared} bytes of shared memory"
    assert assembly.registers * threads <= 65536 // 2, f"{assembly.registers} registers: no two programs fit"
    unit = "HGMMA" if capability == 90 else "HMMA"
    assert assembly.count(unit), f"no {unit}"


def attention_launches(capability: int, width: int, dtype: torch.dtype, kind: str) -> list[Launch]:
    problem = problem_on_meta(BATCH, HEADS, TOKENS, width, dtype, **options(kind))
    todo, _ = launches(problem, divmod(capability, 10))
    return todo


@pytest.mark.parametrize(
    ("capability", "width", "dtype", "kind"),
    [
        *((c, w, torch.bfloat16, kind) for c in (80, 90) for w in (64, 128) for kind in ("causal", "padded")),
        *((c, 64, torch.float16, "causal") for c in (80, 90)),
        (90, 64, torch.bfloat16, "plain"),
        (90, 128, torch.bfloat16, "plain"),
        (80, 64, torch.bfloat16, "plain"),
        (90, 64, torch.bfloat16, "dense"),
        (90, 64, torch.bfloat16, "bias"),
        (90, 64, torch.bfloat16, "capped"),
        (90, 256, torch.bfloat16, "causal"),
        (90, 80, torch.bfloat16, "padded"),
        (90, 64, torch.float32, "causal"),
        (80, 128, torch.float32, "dense"),
        (86, 64, torch.float32, "bias"),
        (86, 64, torch.bfloat16, "padded"),
    ],
    ids=str,
)
def test_attention_kernels(capability: int, width: int, dtype: torch.dtype, kind: str) -> None:
    todo = attention_launches(capability, width, dtype, kind)
    searches = ["visibility_kernel"] if kind in ("dense", "bias") else []  # else, formulas count keys
    assert [launch.kernel.__name__ for launch in todo] == [*searches, "rows_kernel", "columns_kernel"]
    for launch in todo[: len(searches)]:
        assert compiled(launch, capability).spills == 0
    for launch in todo[len(searches) :]:
        check(compiled(launch, capability), launch, capability)


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


def test_blackwell() -> None:
    """It compiles; how it should be tiled, a Blackwell has to say."""
    for launch in attention_launches(100, 64, torch.bfloat16, "causal"):
        assert compiled(launch, 100).count(r"UTC\w*MMA")


def test_the_check_fails_on_a_tile_that_spills() -> None:
    large = Tile(128, 128, warps=4)
    problem = problem_on_meta(BATCH, HEADS, TOKENS, 128, right=0)
    launch = launches(problem, (9, 0), Tiles(large, large))[0][0]
    with pytest.raises(AssertionError, match="stack of"):
        check(compiled(launch, 90), launch, 90)


def test_float32_vectors_of_256_features_fit_into_shared_memory() -> None:
    rows, columns = attention_launches(90, 256, torch.float32, "causal")
    assert compiled(rows, 90).shared <= 99 * 1024
    assert compiled(columns, 90).shared <= 99 * 1024
    assert compiled(columns, 90).spills == 0


@pytest.mark.parametrize(
    ("wanted", "most"),
    [
        ({"logsumexp", "entropy"}, 7.6),
        ({"logsumexp", "entropy", "concentration", "attention_distance", "backward_mass"}, 11.0),
        (set(STATISTICS) - {"special_mass"}, 11.0),
    ],
)
def test_instructions_per_score(wanted: set[str], most: float) -> None:
    """In tiles away from the diagonal, on Hopper."""
    problem = problem_on_meta(32, 12, 512, 64, requested=frozenset(wanted))
    launch = next(
        launch for launch in launches(problem, (9, 0))[0] if launch.kernel.__name__ == "rows_kernel"
    )
    loops = compiled(launch, 90).main_loops
    scores = launch.constants["BLOCK_M"] * launch.constants["BLOCK_N"] / (32 * launch.options["num_warps"])
    far = min(loop.length for loop in loops) / scores
    assert 5.0 < far < most


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [64, 128])
def test_moments_kernel(capability: int, width: int) -> None:
    x = torch.empty(8, TOKENS, HEADS, width, dtype=torch.bfloat16, device="meta").transpose(1, 2)
    launch, _, _ = moments_launch(x, None, frozenset(MOMENTS))
    assembly = compiled(launch, capability)
    assert assembly.spills == 0
    assert assembly.count("HMMA", "HGMMA")


@pytest.mark.parametrize("width", [768, 4096])
def test_stream_kernel(width: int) -> None:
    x = torch.empty(8, TOKENS, width, dtype=torch.bfloat16, device="meta")
    launch, *_ = stream_launch(x, x[..., 0] > 0, x, frozenset(STREAM))
    assembly = compiled(launch, 90)
    assert assembly.spills == 0
    # whole vectors at a time: 16 bytes a thread and load
    assert assembly.count(r"LDG\.E\.\S*128\S*") >= 2
