"""The portable backend against the oracle, on every case and every way to cut it."""

from __future__ import annotations

import dataclasses
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.calls import problem_of, qk, with_rows
from kernels.cases import CASES
from kernels.comparison import as_arrays, assert_agree, assert_float32
from lightning_geo.kernels import STATISTICS
from lightning_geo.kernels.chunked import TILE_SCORES, chunked
from lightning_geo.kernels.reference import reference
from lightning_geo.kernels.workspace import reuse_scratch
from support.gathered import gathered

# one tile; rows cut too: hypothesis draws the sizes between, below
TILES = (TILE_SCORES, 150)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_oracle(name):
    problem = problem_of(CASES[name]())
    with gathered(name) as named:
        for rows, some in (("all rows", problem), ("chosen rows", with_rows(problem))):
            oracle = as_arrays(reference(some))
            for tile_scores in TILES:
                with named(f"{rows}, {tile_scores} scores in a tile"):
                    got = chunked(some, tile_scores)
                    assert_float32(got)
                    assert_agree(got, oracle)


@pytest.mark.parametrize("wanted", STATISTICS)
@pytest.mark.parametrize("name", ["grouped_heads_causal_padded", "sinks", "special_tokens"])
def test_computes_what_is_wanted_alone(name, wanted):
    problem = problem_of(CASES[name]())
    whole = as_arrays(chunked(problem))
    part = as_arrays(chunked(dataclasses.replace(problem, requested=frozenset({wanted}))))
    assert part.keys() == {"live", wanted} & whole.keys()
    for field, value in part.items():
        np.testing.assert_allclose(value, whole[field], rtol=1e-6)


@st.composite
def calls(draw):
    """Attention calls in which everything may come together."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    if draw(st.booleans()):
        queries = keys
    batch, key_heads, shared = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (batch, key_heads * shared, queries, keys)

    def chance(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) > draw(st.sampled_from([0.1, 0.5, 0.9]))

    def broadcast() -> tuple[int, ...]:
        return tuple(draw(st.sampled_from([1, size])) for size in shape)

    masks = []
    if draw(st.booleans()):
        masks.append(chance(*broadcast()))
    if draw(st.booleans()):
        bias = torch.randn(*broadcast(), generator=generator)
        masks.append(bias.masked_fill(~chance(*bias.shape), draw(st.sampled_from([-torch.inf, -1e4, -3e38]))))
    dim = draw(st.integers(1, 20))
    return {
        "query": torch.randn(batch, shape[1], queries, dim, generator=generator) * draw(st.floats(0, 5)),
        "key": torch.randn(batch, key_heads, keys, dim, generator=generator),
        "mask": tuple(masks),
        "is_causal": draw(st.booleans()),
        "causal_alignment": draw(st.sampled_from(["top_left", "bottom_right"])),
        "query_mask": draw(st.sampled_from([None, chance(batch, queries)])),
        "window": draw(st.none() | st.integers(1, 9) | st.tuples(st.integers(-1, 9), st.integers(-1, 9))),
        "sinks": draw(st.sampled_from([None, torch.randn(shape[1], generator=generator)])),
        "special": draw(st.sampled_from([None, chance(batch, keys)])),
        "softcap": draw(st.sampled_from([None, 2.0])),
    }


# A tile of one score is a row of one head at a time, and one of 1024 a few groups of sequences or heads.
@pytest.mark.slow
@given(calls(), st.sampled_from([1, 1 << 10]) | st.integers(1, 5000))
def test_agrees_with_the_oracle_on_combinations(arguments, tile_scores):
    problem = problem_of(arguments)
    assert_agree(chunked(problem, tile_scores), as_arrays(reference(problem)))
    chosen = with_rows(problem)
    assert_agree(chunked(chosen, tile_scores), as_arrays(reference(chosen)))


@given(calls(), calls())
def test_what_layers_share_is_kept_until_a_mask_changes(arguments, others):
    problem = problem_of(arguments)
    with reuse_scratch():
        for call in (problem, problem_of(others), problem):
            assert_agree(chunked(call), as_arrays(reference(call)))
        for mask in problem.masks:
            mask.copy_(mask.flip(0, 3))
        assert_agree(chunked(problem), as_arrays(reference(problem)))


@pytest.mark.parametrize(
    "name", ["strided_projections", "several_masks", "nan_in_padding", "block_documents"]
)
def test_changes_nothing_around_it(name):
    arguments = CASES[name]()
    problem = problem_of(arguments)
    tensors = [problem.query, problem.key, *(m for m in problem.masks if isinstance(m, torch.Tensor))]
    before = [t.clone() for t in tensors]
    seed, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    chunked(problem)
    for tensor, copy in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.get_rng_state(), seed)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.is_grad_enabled()


def test_leaves_no_graph():
    arguments = qk()
    arguments["query"].requires_grad_()
    got = chunked(problem_of({**arguments, "mask": torch.zeros(13, 13, requires_grad=True)}))
    assert not got.entropy.requires_grad
    assert not got.received.requires_grad


def test_autocast_does_not_lower_precision():
    problem = problem_of(CASES["causal"]())
    with torch.autocast("cpu", torch.bfloat16):
        inside = chunked(problem)
    assert_agree(inside, as_arrays(reference(problem)))


def exactness() -> str:
    """How exact products of float32 are on a CPU."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.6 has none
    return torch.get_float32_matmul_precision() if matmul is None else matmul.fp32_precision


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_matmul_precision_is_lifted_and_put_back(precision):
    problem = problem_of(CASES["plain"]())
    seen = []
    query = problem.query

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.baddbmm:
                seen.append(exactness())
            return func(*args, **(kwargs or {}))

    torch.set_float32_matmul_precision(precision)
    try:
        before = exactness()
        with Spy():
            chunked(problem)
        assert len(seen) == 1
        assert seen[0] in ("ieee", "highest")
        assert exactness() == before not in ("ieee", "highest")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert query is problem.query


def test_works_in_inference_mode():
    with torch.inference_mode():
        problem = problem_of(CASES["grouped_heads_causal_padded"]())
        got = chunked(problem)
    assert_agree(got, as_arrays(reference(problem)))


MEMORY = """
    import resource
    import torch
    from lightning_geo.functional import attention_statistics

    torch.set_num_threads(1)

    def call(tokens, **options):
        query = torch.randn(1, 2, tokens, 16)
        return query, options

    def resident():
        pages = int(open("/proc/self/statm").read().split()[1])
        return pages * resource.getpagesize()

    attention_statistics(*[torch.randn(1, 2, 8, 16)] * 2)  # lazily loaded libraries
    query = torch.randn(1, 2, 16384, 16)
    {setup}
    before = resident()
    {statement}
    # not ru_maxrss, which a process inherits from the one that started it
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.fixture
def extra_memory(forks, tmp_path):
    """MB that a statement needs at its peak beyond what was resident before, ``setup`` done."""

    def extra_memory(statement: str, setup: str = "") -> float:
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(MEMORY).format(statement=statement, setup=setup))
        [status], [stdout], [stderr] = forks.run([str(program)], folder=tmp_path)
        assert status == 0, stderr
        return int(stdout) / 1e6

    return extra_memory


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "options", ["", "is_causal=True", "mask=padding[:, None, None], query_mask=padding", "mask=blocks"]
)
def test_long_sequences_need_little_memory(extra_memory, options):
    prepare = {
        "padding": "padding = torch.arange(16384)[None] < 9000; ",
        "blocks": "from torch.nn.attention.flex_attention import create_block_mask; "
        "blocks = create_block_mask(lambda b, h, q, k: q - k < 99, None, None, 2048, 2048, 'cpu'); ",
    }
    setup = "".join(text for name, text in prepare.items() if name in options)
    query = "query[:, :, :2048]" if "blocks" in options else "query"
    assert extra_memory(f"attention_statistics({query}, {query}, {options})", setup) < 200


@pytest.mark.slow
def test_memory_is_measured(extra_memory):
    assert extra_memory("query[:, :, :6144] @ query[:, :, :6144].mT") > 200


def test_positions_are_exact_in_long_rows():
    # distances beyond 2048, the last integer of half precision, weighted by one-hot attention
    keys = 5000
    query, key = torch.full((1, 1, 1, 1), 50.0), torch.zeros(1, 1, keys, 1)
    key[0, 0, 4321] = 1.0
    got = chunked(problem_of({"query": query, "key": key}))
    np.testing.assert_allclose(got.attention_distance.item(), 4321, rtol=1e-7)
    assert got.received.argmax() == 4321
