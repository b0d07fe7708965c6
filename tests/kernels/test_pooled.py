"""Pooled attention against a dense softmax in float64 that is pooled by matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.calls import problem_of
from kernels.cases import CASES
from kernels.naive import _masks
from lightning_geo.functional import attention_statistics
from lightning_geo.kernels.pooled import pooled_attention

SQUARE = [
    name for name, build in CASES.items()
    if (a := build())["query"].shape[2] == a["key"].shape[2] > 0 and a["query"].shape[0] > 0
]  # fmt: skip


def dense(arguments: dict[str, Any], cells: int) -> np.ndarray:
    """The definition: [B, H, c, c], from matrices of all pairs."""
    query, key = (arguments[name].double().numpy() for name in ("query", "key"))
    batch, heads, count, dim = query.shape
    key = key.repeat(heads // key.shape[1], axis=1)
    scale = arguments.get("scale")
    scores = query @ key.swapaxes(2, 3) * (dim**-0.5 if scale is None else scale)
    if cap := arguments.get("softcap"):
        scores = cap * np.tanh(scores / cap)
    visible, bias = _masks(arguments, scores.shape, 0)
    real = np.ones((batch, count), bool) if (q := arguments.get("query_mask")) is None else q.numpy()
    side = min(cells, count)
    result = np.full((batch, heads, side, side), np.nan)
    for b in range(batch):
        tokens = np.flatnonzero(real[b])
        n, m = len(tokens), min(len(tokens), cells)
        members = np.zeros((m, count))
        for place, token in enumerate(tokens):
            (block,) = [i for i in range(m) if i * n <= place * m < (i + 1) * n]
            members[block, token] = 1
        for h in range(heads):
            live = visible[b, h].any(1)
            with np.errstate(all="ignore"):
                p = scipy.special.softmax(np.where(visible[b, h], scores[b, h] + bias[b, h], -np.inf), axis=1)
                rows = members * live
                p[~live | ~real[b]] = 0
                result[b, h, :m, :m] = rows @ p @ members.T / rows.sum(1)[:, None]
    return result


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize(("cells", "tile"), [(32, 1 << 20), (4, 40)])
def test_every_kind_of_call_is_pooled_as_defined(name: str, cells: int, tile: int) -> None:
    arguments = CASES[name]()
    if arguments.get("causal_alignment") == "bottom_right":
        arguments.pop("causal_alignment")
    pooled, _ = pooled_attention(problem_of(arguments), cells, tile)
    expected = dense(arguments, cells)
    if not all(torch.isfinite(arguments[x]).all() for x in ("query", "key")):
        finite = np.isfinite(pooled.numpy())  # what is not finite has no value; the rest is right
        np.testing.assert_allclose(pooled.numpy()[finite], expected[finite], atol=2e-5)
        return
    np.testing.assert_allclose(pooled.numpy(), expected, atol=2e-5)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    batch, key_heads, group = (draw(st.integers(1, 2)) for _ in range(3))
    count = draw(st.integers(1, 70))
    torch.manual_seed(draw(st.integers(0, 99)))
    arguments: dict[str, Any] = {
        "query": torch.randn(batch, key_heads * group, count, 4) * draw(st.sampled_from([0.1, 2.0, 8.0])),
        "key": torch.randn(batch, key_heads, count, 4),
        "is_causal": draw(st.booleans()),
        "softcap": draw(st.sampled_from([None, 3.0])),
        "window": draw(st.sampled_from([None, (3, -1), (5, 5)])),
    }
    padding = draw(st.sampled_from(["none", "left", "right", "holes"]))
    if padding != "none":
        lost = torch.tensor([draw(st.integers(0, count - 1)) for _ in range(batch)])[:, None]
        place = torch.arange(count)
        real = {"left": place >= lost, "right": place < count - lost, "holes": torch.rand(batch, count) > 0.3}
        arguments["query_mask"] = real[padding]
        arguments["mask"] = real[padding][:, None, None]
    if draw(st.booleans()):
        bias = torch.randn(1, key_heads * group, count, count)
        mask = arguments.get("mask")
        arguments["mask"] = bias if mask is None else (bias, mask)
    return arguments


@given(calls(), st.integers(1, 40), st.sampled_from([1, 60, 1000]))
def test_any_call_is_pooled_as_defined(arguments: dict[str, Any], cells: int, tile: int) -> None:
    pooled, real = pooled_attention(problem_of(arguments), cells, tile)
    expected = dense(arguments, cells)
    np.testing.assert_allclose(pooled.numpy(), expected, atol=2e-5)
    mask = arguments.get("query_mask")
    assert real.tolist() == (
        [arguments["query"].shape[2]] * len(real) if mask is None else mask.sum(1).tolist()
    )


def test_rows_add_to_one_and_few_tokens_have_a_cell_each() -> None:
    arguments = CASES["causal"]()
    problem = problem_of(arguments)
    pooled, _ = pooled_attention(problem, 5)
    torch.testing.assert_close(pooled.sum(-1), torch.ones(pooled.shape[:3]))
    assert (pooled.triu(1) == 0).all()
    single, _ = pooled_attention(problem, 32)
    own = attention_statistics(**arguments).self_mass
    torch.testing.assert_close(single.diagonal(dim1=2, dim2=3), own)


def test_padding_that_is_not_finite_leaves_no_trace() -> None:
    arguments = CASES["grouped_heads_causal_padded"]()
    real = torch.arange(13) < torch.tensor([[13], [6]])
    arguments["query_mask"] = real
    clean, _ = pooled_attention(problem_of(arguments), 4)
    for name in ("query", "key"):
        arguments[name] = arguments[name].clone().masked_fill_(~real[:, None, :, None], torch.inf)
    spoilt, _ = pooled_attention(problem_of(arguments), 4)
    torch.testing.assert_close(spoilt, clean, rtol=0, atol=0)


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


class _Waits(TorchDispatchMode):
    """Operations whose results the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_nothing_grows_with_the_square_of_the_length() -> None:
    def largest(count: int) -> int:
        query = torch.randn(1, 2, count, 4)
        problem = problem_of({"query": query, "key": query, "is_causal": True})
        with _Largest() as seen:
            pooled_attention(problem, 32, tile_scores=1 << 14)
        return seen.elements

    short, long = largest(2048), largest(4096)
    assert short <= max(1 << 14, 2048 * 32)  # the table of blocks: 32 numbers a token
    assert long <= 2 * short < 2 * 2048**2 / 32


def test_the_host_never_waits() -> None:
    problem = problem_of({**CASES["grouped_heads_causal_padded"](), "query_mask": torch.rand(2, 13) > 0.3})
    with _Waits() as seen:
        pooled_attention(problem, 4)
    assert not seen.reads
