"""Runs the Triton kernels on CPU tensors, in Triton's interpreter, against the oracle.

Prints one line of JSON per check: its name and what went wrong, or null; arguments are parts of the names of
the checks to run. The interpreter is chosen when
Triton is first imported, hence a program of its own.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # whoever imports this, as pytest does to look for doctests, keeps the compiler
    os.environ["TRITON_INTERPRET"] = "1"

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from support import shapes  # noqa: E402

if __name__ == "__main__":
    shapes.install()  # before anything imports the package

from kernels import test_vectors as vectors  # noqa: E402
from kernels.calls import problem_of, qk  # noqa: E402
from kernels.cases import CASES  # noqa: E402
from kernels.comparison import as_arrays, assert_agree, assert_float32  # noqa: E402
from lightning_geo import kernels, measure  # noqa: E402
from lightning_geo.kernels import MOMENTS, STATISTICS, STREAM, AttentionProblem  # noqa: E402
from lightning_geo.kernels.reference import reference  # noqa: E402
from lightning_geo.kernels.triton import attention, sketch_launch, unsupported  # noqa: E402
from lightning_geo.kernels.triton import vectors as vectors_on_triton  # noqa: E402
from lightning_geo.kernels.triton.partial_moments import merged  # noqa: E402
from lightning_geo.kernels.triton.tiles import GramTile, Tile, Tiles  # noqa: E402
from lightning_geo.measurement import batches  # noqa: E402
from lightning_geo.measurement.collectors import role_moments  # noqa: E402
from programs.faster_interpreter import make_the_interpreter_faster  # noqa: E402

#: Small enough to cut the cases' 13 tokens nowhere and their 203 everywhere; the interpreter needs some 10 ms
#: a tile of any size.
TILES = Tiles(Tile(16, 16), Tile(16, 16))

#: Cases with rows at odd positions, for chosen rows.
CHOSEN = (
    "plain", "causal", "causal_more_queries_bottom_right", "window_two_sided", "window_past_the_keys",
    "grouped_heads_causal_padded", "mask_full", "bias_per_head", "several_masks", "query_mask_with_holes",
    "nan_query", "nan_in_rows_that_see_keys", "sinks", "float16",
)  # fmt: skip

#: Widths between powers of two, in two blocks but for 112, and cases that differ in what the product meets.
WIDTHS = {
    72: ("float16", "mask_full", "special_tokens_grouped"),
    80: ("grouped_heads_causal_padded", "bias_per_head", "window_and_mask"),
    96: ("float16", "sinks", "softcap_masked"),
    112: ("grouped_heads_causal_padded", "mask_full"),
    136: ("window_two_sided", "bias_with_lowest_float", "query_mask_with_holes"),
    160: ("float16", "mask_full", "several_masks"),
    192: ("grouped_heads_causal_padded", "bias_per_head", "window_and_mask"),
}


def agrees(problem: AttentionProblem, tiles: Tiles | None = TILES) -> None:
    reason = unsupported("attention", problem)
    assert reason is None, f"unsupported: {reason}"
    got = attention(problem, tiles)
    assert_float32(got)
    assert_agree(got, as_arrays(reference(problem)))


def chosen(name: str) -> AttentionProblem:
    """A case with rows in any order, some twice."""
    problem = problem_of(CASES[name]())
    generator = torch.Generator().manual_seed(0)
    shape = (problem.query.shape[0], 18)
    return dataclasses.replace(
        problem, rows=torch.randint(0, problem.query.shape[2], shape, generator=generator)
    )


def widened(name: str, dim: int) -> AttentionProblem:
    """A case with vectors of another width."""
    arguments = CASES[name]()
    generator = torch.Generator().manual_seed(dim)
    # scores no larger than they were, for float32 holds as many digits of them
    size = 2.0 * (8 / dim) ** 0.5 if "scale" in arguments else 2.0
    for part, factor in (("query", size), ("key", 1.0)):
        shape, dtype = arguments[part].shape[:3], arguments[part].dtype
        arguments[part] = (factor * torch.randn(*shape, dim, generator=generator)).to(dtype)
    return problem_of(arguments)


def checks() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    for name, build in CASES.items():
        problem = problem_of(build())
        if unsupported("attention", problem) is None:
            found[name] = lambda problem=problem: agrees(problem)
    for name in CHOSEN:
        found[f"chosen rows: {name}"] = lambda name=name: agrees(chosen(name))
    everything = problem_of({**CASES["sinks"](), "special": CASES["special_tokens"]()["special"]})
    for name in STATISTICS:
        part = dataclasses.replace(everything, requested=frozenset([name]))
        found[f"only: {name}"] = lambda part=part: agrees(part)
    masked = dataclasses.replace(
        problem_of(CASES["mask_full"]()), requested=frozenset(["visible_keys", "entropy"])
    )
    found["only: counted keys"] = lambda: agrees(masked)
    # tiles that are not square, as on a device
    oblong = Tiles(Tile(16, 32), Tile(32, 16))
    for name in ("more_keys_bottom_right", "window_and_mask", "sliding_window", "mask_left_padding_causal"):
        found[f"oblong: {name}"] = lambda name=name: agrees(problem_of(CASES[name]()), oblong)
    for dim in (3, 24, 100):
        problem = problem_of({**qk(batch=1, heads=2, dim=dim), "is_causal": True})
        found[f"head_dim {dim}"] = lambda problem=problem: agrees(problem)
    for dim, names in WIDTHS.items():
        for name in names:
            found[f"head_dim {dim}: {name}"] = lambda dim=dim, name=name: agrees(widened(name, dim), oblong)
    for name in (*vectors.CASES, "many_tokens", "wide_stream"):
        found[f"stream: {name}"] = lambda name=name: stream_agrees(name)
        found[f"moments: {name}"] = lambda name=name: moments_agree(name)
    for shifted in (False, True):
        found[f"moments: merged, shifted {shifted}"] = lambda shifted=shifted: merging_agrees(shifted)
    for name in vectors.WIDE:
        found[f"scatter: {name}"] = lambda name=name: scatter_agrees(name)
        found[f"sketch: {name}"] = lambda name=name: sketch_agrees(name, GramTile(32, 64, warps=8))
    for name in vectors.CASES:
        found[f"sketch: {name}"] = lambda name=name: sketch_agrees(name, GramTile(16, 16, warps=4))
    found["tiles from the table"] = lambda: agrees(problem_of(CASES["causal"]()), None)
    for widest in (1024, 0):
        found[f"sample: joint to {widest}"] = lambda widest=widest: sample_agrees(widest)
    found["by name"] = by_name
    return found


def vector_case(name: str) -> tuple[Tensor, Tensor | None]:
    if name == "many_tokens":  # several steps per program, several programs per sequence
        return vectors.tokens(2, 2, 1100, 8, mean=10.0), torch.arange(1100) < torch.tensor([[1100], [700]])
    if name == "wide_stream":  # several warps per token
        return vectors.tokens(2, 1, 5, 2500), None
    return vectors.CASES[name]()


def stream_agrees(name: str) -> None:
    x, mask = vector_case(name)
    x = x[:, 0]
    if name == "many_tokens":  # for fewer programs than a device has, 90 tokens are two of many steps
        x, mask = x[:, :90], torch.arange(90) < torch.tensor([[90], [70]])
        with patch.object(vectors_on_triton, "_PROGRAMS", 4):
            launch = vectors_on_triton.stream_launch(x, mask, None, frozenset(STREAM))[0]
            assert launch.constants["STEPS"] > 2
            assert launch.arguments["chunks"] == 2
            stream_of_both_agrees(x, mask)
    else:
        stream_of_both_agrees(x, mask)


def stream_of_both_agrees(x: Tensor, mask: Tensor | None) -> None:
    """With and without a block's input, all statistics and some."""
    for before in (None, (x.flip(-1) * 1.5 + 0.1)):
        for wanted in (frozenset(STREAM), frozenset(["directions"]), frozenset(["kurtosis", "update_ratio"])):
            reason = vectors_on_triton.unsupported("stream_statistics", x, mask, before, wanted)
            assert reason is None, f"unsupported: {reason}"
            got = vectors_on_triton.stream_statistics(upcast(x), mask, upcast(before), wanted)
            expected = kernels.stream_statistics(x, mask, before, wanted, "chunked")
            vectors.assert_agree(got, expected, 1e-4)


def moments_agree(name: str) -> None:
    x, mask = vector_case(name)
    for wanted in (frozenset(MOMENTS), frozenset(["directions"]), frozenset(["scatter"])):
        if vectors_on_triton.unsupported("head_moments", x, mask, wanted) is not None:
            assert x.shape[-1] > 128
            continue
        got = vectors_on_triton.head_moments(upcast(x), mask, wanted)
        vectors.assert_agree(got, kernels.head_moments(x, mask, wanted, "reference"))
    if x.shape[-1] <= 128:
        apart, together = vectors.layered(x)
        got = vectors_on_triton.head_moments(upcast(apart), mask, frozenset(MOMENTS))
        vectors.assert_agree(got, kernels.head_moments(together, mask, frozenset(MOMENTS), "reference"))


def merging_agrees(shifted: bool) -> None:
    """Nine parts of unequal size, one of them empty, of features that fill no block."""
    counts = torch.tensor([5.0, 0.0, 3.0, 9.0, 1.0, 2.0, 7.0, 4.0, 6.0])
    parts = [vectors.tokens(int(n), 2, 40, mean=50.0 + i) for i, n in enumerate(counts)]
    whole = torch.cat(parts).double()
    shift = whole.mean(0).float() + 0.5
    centres = [shift if shifted else part.mean(0).nan_to_num() for part in parts]
    apart = [part - centre for part, centre in zip(parts, centres, strict=True)]
    sums = torch.stack([x.sum(0) for x in apart] if shifted else centres)
    products = torch.stack([torch.einsum("thi,thj->hij", x, x) for x in apart])
    got = merged(counts, sums, products, shift if shifted else None)
    assert got["count"] == len(whole)
    torch.testing.assert_close(got["mean"], whole.mean(0).float())
    centred = whole - whole.mean(0)
    expected = torch.einsum("thi,thj->hij", centred, centred).float()
    torch.testing.assert_close(got["scatter"], expected, rtol=1e-5, atol=1e-5 * expected.max().item())


def scatter_agrees(name: str) -> None:
    x, mask = vectors.WIDE[name]()
    for tile in (GramTile(128, 32, warps=8), GramTile(64, 32, warps=4)):
        with patch.object(vectors_on_triton, "gram_tile_for", lambda *_, tile=tile: tile):
            got = vectors_on_triton.head_moments(x, mask, frozenset(["scatter"]))
            vectors.assert_scatter_agrees(got, x, mask)
            error = (got.mean - kernels.head_moments(x, mask, frozenset(["scatter"]), "reference").mean).abs()
            assert error.max() <= 1e-6 * x.nan_to_num().abs().max()
    apart, together = vectors.layered(x)
    got = vectors_on_triton.head_moments(apart, mask, frozenset(["scatter"]))
    vectors.assert_scatter_agrees(got, together, mask)


def sketch_agrees(name: str, tile: GramTile) -> None:
    x, real, draws = vectors.sketched({**vectors.CASES, **vectors.WIDE}[name])
    x = x[..., :40]  # more than a block or two would take seconds
    assert sketch_launch.unsupported("sketch", x, real, draws, None) is None
    with patch.object(sketch_launch, "gram_tile_for", lambda *_: tile):
        vectors.assert_sketches_agree(sketch_launch.sketch, x, real, draws)


def sample_agrees(widest: int) -> None:
    """A whole sample, gathered as on a GPU; the outputs of wider layers are sketched."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    mask = torch.arange(12) >= torch.tensor([[12], [9]])
    call = {"src": torch.randn(2, 12, 16), "src_key_padding_mask": mask}
    on_triton = {name: {**own, "chunked": own["triton"]} for name, own in kernels._FUNCTIONS.items()}
    with (
        patch.object(role_moments, "_JOINT_MAX_WIDTH", widest),
        patch.object(batches, "_APART", ("cpu",)),
    ):
        expected = measure(model, call).stacks["layers"]
        with patch.dict(kernels._FUNCTIONS, on_triton):
            got = measure(model, call).stacks["layers"]
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            *map(torch.from_numpy, (got[name], values)), rtol=5e-4, atol=1e-5, equal_nan=True, msg=name
        )


def upcast(x: Tensor | None) -> Tensor | None:
    """The interpreter's bfloat16 arithmetic is wrong."""
    return x.float() if x is not None and x.dtype == torch.bfloat16 else x


def by_name() -> None:
    """The public dispatch reaches the kernels, and passes on what they cannot take."""
    problem = problem_of(CASES["causal"]())
    assert_agree(kernels.attention(problem, "triton"), as_arrays(reference(problem)))
    problem = problem_of(CASES["block_causal"]())
    assert_agree(kernels.attention(problem, "triton"), as_arrays(reference(problem)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_the_interpreter_faster()
    warnings.simplefilter("ignore")  # numpy's, about the NaN that some cases are there for
    some = sys.argv[1:]
    for name, check in checks().items():
        if some and not any(part in name for part in some):
            continue
        error = None
        try:
            with shapes.shape_checks(on=True):
                check()
        except Exception as reason:  # each is reported under its name
            error = f"{type(reason).__name__}: {reason}"[:3000]
        print(json.dumps([name, error]), flush=True)
