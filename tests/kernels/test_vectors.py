"""Statistics of vectors on the portable backend against the oracle, and the oracle against numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_geo import kernels
from lightning_geo.kernels import MOMENTS, STREAM, sketches
from lightning_geo.kernels.vectors import _scatter_of

CASES: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {}


def case(build: Callable[[], tuple[Tensor, Tensor | None]]) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """Vectors [B, H, N, D] and the mask of their tokens [B, N]."""
    CASES[build.__name__] = build
    return build


def tokens(*shape: int, mean: float = 0.5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + mean


RIGHT = torch.arange(13) < torch.tensor([[13], [5]])


@case
def plain() -> tuple[Tensor, None]:  # no mask: nothing is multiplied by it
    return tokens(2, 3, 13, 8), None


@case
def padded() -> tuple[Tensor, Tensor]:
    return tokens(2, 3, 13, 8), RIGHT


@case
def nan_in_padding() -> tuple[Tensor, Tensor]:  # zero times NaN is NaN
    x = tokens(2, 3, 13, 8)
    x.transpose(1, 2)[~RIGHT] = torch.nan
    return x, RIGHT


@case
def projections() -> tuple[Tensor, Tensor]:  # [B, N, H * D] seen as [B, H, N, D], as models have it
    return tokens(2, 13, 24).view(2, 13, 3, 8).transpose(1, 2), RIGHT


@case
def far_from_zero() -> tuple[Tensor, Tensor]:  # a small spread around a large mean
    return tokens(2, 3, 13, 8, mean=100.0), RIGHT


@case
def zero_vectors() -> tuple[Tensor, Tensor]:  # they have no direction
    x = tokens(2, 3, 13, 8)
    x[0, 1, 4] = 0
    return x, RIGHT


@case
def an_empty_sequence() -> tuple[Tensor, Tensor]:
    return tokens(2, 3, 13, 8), RIGHT & torch.tensor([[True], [False]])


@case
def wide() -> tuple[Tensor, Tensor]:  # half of the Gram matrix is mirrored; no multiple of the blocks
    return tokens(2, 1, 13, 259), RIGHT


@case
def half() -> tuple[Tensor, Tensor]:
    return tokens(2, 3, 13, 8).half(), RIGHT


@case
def bfloat16() -> tuple[Tensor, Tensor]:
    return tokens(2, 3, 13, 8).bfloat16(), RIGHT


@case
def one_token() -> tuple[Tensor, None]:  # no spread
    return tokens(1, 2, 1, 4), None


WIDE: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {}


def wide_case(
    build: Callable[[], tuple[Tensor, Tensor | None]],
) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """Vectors of many features whose scatter is hard to keep in few digits."""
    WIDE[build.__name__] = build
    return build


@wide_case
def small_spread() -> tuple[Tensor, Tensor]:  # the mean is as far away as bfloat16 resolves the spread
    x = tokens(2, 1, 700, 200, mean=100.0)
    return x.bfloat16(), torch.arange(700) < torch.tensor([[700], [650]])


@wide_case
def smaller_spread() -> tuple[Tensor, None]:
    return tokens(2, 1, 300, 200, mean=3000.0), None


@wide_case
def an_outlying_token() -> tuple[Tensor, None]:  # the first one, which the shift is estimated from
    x = tokens(2, 1, 700, 200)
    x[0, 0, 0, ::3] = 1e4
    return x.bfloat16(), None


@wide_case
def outlying_features() -> tuple[Tensor, Tensor]:
    x = tokens(2, 2, 300, 200)
    x[..., 5::40] = 1000.0 * x[..., 5::40] + 3000.0
    x[1, :, 200:] = torch.nan
    return x.half().float(), torch.arange(300) < torch.tensor([[300], [200]])


@wide_case
def the_same_rest_in_all() -> tuple[Tensor, None]:  # what bfloat16 leaves of each has one sign: it adds up
    x = torch.where(torch.arange(300)[:, None] % 2 == 0, 1.0, -1.0).expand(1, 1, 300, 200)
    return (x * (1 + 2**-9 + 2**-18 + 2**-19)).contiguous(), None


def layered(x: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors ``[B, 2, H, N, D]`` of two layers that lie apart, and the same as ``[B, 2 H, N, D]``."""
    return torch.stack([x, 2 * x]).movedim(0, 1), torch.cat([x, 2 * x], 1)


def assert_scatter_agrees(got: Any, x: Tensor, mask: Tensor | None) -> None:
    """In float32, up to the spread of the features."""
    expected = kernels.head_moments(x, mask, frozenset({"scatter"}), "reference").scatter
    assert expected is not None
    spread = expected.diagonal(dim1=1, dim2=2).sqrt()
    error = (got.scatter.double().cpu() - expected).abs() / (spread[:, :, None] * spread[:, None])
    assert error.max() < 1e-5, error.max()


def assert_agree(got: Any, expected: Any, tolerance: float = 1e-5) -> None:
    for field in dataclasses.fields(expected):
        ours, theirs = (getattr(statistics, field.name) for statistics in (got, expected))
        assert (ours is None) == (theirs is None), field.name
        if ours is None:
            continue
        ours, theirs = ours.double().numpy(), theirs.double().numpy()
        size = max(1.0, np.abs(np.nan_to_num(theirs)).max(initial=0))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * size, err_msg=field.name)


@pytest.mark.parametrize("name", CASES)
def test_moments_agree_with_the_oracle(name: str) -> None:
    x, mask = CASES[name]()
    before = x.clone()
    got = kernels.head_moments(x, mask, frozenset(MOMENTS))
    assert_agree(got, kernels.head_moments(x, mask, frozenset(MOMENTS), "reference"))
    assert torch.equal(x.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_layers_that_lie_apart_are_further_heads(name: str, backend: Any) -> None:
    x, mask = CASES[name]()
    apart, together = layered(x)
    got = kernels.head_moments(apart, mask, frozenset(MOMENTS), backend)
    assert_agree(got, kernels.head_moments(together, mask, frozenset(MOMENTS), "reference"))


@pytest.mark.parametrize("name", WIDE)
def test_the_scatter_of_wide_vectors_keeps_its_digits(name: str) -> None:
    x, mask = WIDE[name]()
    assert_scatter_agrees(kernels.head_moments(x, mask, frozenset({"scatter"})), x, mask)


@pytest.mark.parametrize("name", [name for name, build in CASES.items() if build()[1] is not None])
def test_scatter_without_waiting_for_the_device_is_the_same(name: str) -> None:
    x, mask = CASES[name]()
    assert mask is not None
    tokens = x.float().transpose(1, 2).flatten(2).flatten(0, 1)
    heads, width = x.shape[1], x.shape[3]
    packed = _scatter_of(tokens, mask.flatten().nonzero().squeeze(-1), None, heads, width)
    masked = _scatter_of(tokens, None, mask.flatten(), heads, width)
    for field, value in packed.items():
        torch.testing.assert_close(masked[field], value, rtol=1e-5, atol=1e-4, msg=field)


def sketched(build: Callable[[], tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Tokens [T, 2, H * D] of two layers, which of them are real, and draws for 20 rows."""
    x, mask = build()
    tokens = x.transpose(1, 2).flatten(2).flatten(0, 1)
    draws = torch.empty(2, 20, len(tokens)).bernoulli_(0.5, generator=torch.Generator().manual_seed(0))
    return torch.stack([tokens, -3 * tokens], 1), None if mask is None else mask.flatten(), draws


def assert_sketches_agree(sketch: Any, x: Tensor, real: Tensor | None, draws: Tensor) -> None:
    """Sketches of all tokens, and of some and then the others, are those of the oracle."""
    expected, signs = kernels.sketch(x, real, draws, None, "reference")
    size = x.double().abs() if real is None else torch.where(real[:, None, None], x.double().abs(), 0.0)
    half = len(x) // 2
    for parts in ([slice(None)], [slice(half), slice(half, None)]):
        got, total = None, 0.0
        for part in parts:
            if not len(x[part]):
                continue
            got, some = sketch(x[part], None if real is None else real[part], draws[..., part].clone(), got)
            total = total + some
        assert torch.equal(total.double(), signs)
        assert got.dtype == torch.float32
        error = (got - expected).abs() / size.sum(0)[:, None].clamp(min=1)
        assert error.max() < 5e-6, error.max()


@pytest.mark.parametrize("name", [*CASES, *WIDE])
def test_sketches_agree_with_the_oracle(name: str) -> None:
    assert_sketches_agree(kernels.sketch, *sketched({**CASES, **WIDE}[name]))


@pytest.mark.parametrize("name", ["padded", "small_spread"])
def test_sketches_of_many_tokens_are_made_of_some_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, real, draws = sketched({**CASES, **WIDE}[name])
    monkeypatch.setattr(sketches, "_AT_ONCE", 3 * x[0].numel())
    with patch.object(sketches, "_sketch", wraps=sketches._sketch) as made:
        assert_sketches_agree(kernels.sketch, x, real, draws)
    assert max(len(call.args[0]) for call in made.call_args_list) == 3


@pytest.mark.parametrize("with_input", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_streams_agree_with_the_oracle(name: str, with_input: bool) -> None:
    x, mask = CASES[name]()
    x = x[:, 0]
    before = x.flip(-1) * 1.5 + 0.1 if with_input else None
    wanted = frozenset(STREAM)
    got = kernels.stream_statistics(x, mask, before, wanted)
    assert_agree(got, kernels.stream_statistics(x, mask, before, wanted, "reference"), 1e-4)


@pytest.mark.parametrize("wanted", MOMENTS)
def test_only_the_moments_that_are_wanted(wanted: str) -> None:
    x, mask = CASES["padded"]()
    part, whole = (kernels.head_moments(x, mask, frozenset(w)) for w in ((wanted,), MOMENTS))
    fields = {"directions": {"directions", "directed"}, "scatter": {"scatter", "mean", "count"}}
    there = {f.name for f in dataclasses.fields(part) if getattr(part, f.name) is not None}
    assert there == {"valid", *fields.get(wanted, {wanted})}
    for name in there:
        assert torch.equal(getattr(part, name).nan_to_num(), getattr(whole, name).nan_to_num())


@pytest.mark.parametrize("wanted", STREAM)
def test_only_what_is_wanted_of_the_stream(wanted: str) -> None:
    x, mask = CASES["padded"]()
    part, whole = (
        kernels.stream_statistics(x[:, 0], mask, x[:, 1], frozenset(w)) for w in ((wanted,), STREAM)
    )
    there = {f.name for f in dataclasses.fields(part) if getattr(part, f.name) is not None}
    assert there - {"directed"} == {"valid", "finite", wanted}
    for name in there:
        assert torch.equal(getattr(part, name).nan_to_num(), getattr(whole, name).nan_to_num())


@given(seed=st.integers(0, 2**32 - 1), keep=st.sampled_from([0.0, 0.5, 1.0]))
def test_the_oracle_agrees_with_numpy(seed: int, keep: float) -> None:
    rng = np.random.default_rng(seed)
    x, before = rng.gamma(1.0, size=(2, 3, 2, 7, 5))
    mask = rng.random((3, 7)) < keep
    arrays = [torch.tensor(a) for a in (x, mask, x[:, 0], before[:, 0])]
    moments = kernels.head_moments(arrays[0], arrays[1], frozenset(MOMENTS), "reference")
    kept = x.transpose(0, 2, 1, 3)[mask]
    for head in range(2):
        if len(kept) > 1:
            covariance = np.cov(kept[:, head].T, bias=True) * len(kept)
            np.testing.assert_allclose(moments.scatter[head], covariance, atol=1e-9)
    stream = kernels.stream_statistics(arrays[2], arrays[1], arrays[3], frozenset(STREAM), "reference")
    for b, i in np.ndindex(3, 7):
        token, start = x[b, 0, i], before[b, 0, i]
        expected = [np.linalg.norm(token), scipy.stats.skew(token), scipy.stats.kurtosis(token),
                    np.linalg.norm(token - start) / np.linalg.norm(start)]  # fmt: skip
        got = [getattr(stream, n)[b, i] for n in ("norm", "skewness", "kurtosis", "update_ratio")]
        np.testing.assert_allclose(got, expected if mask[b, i] else [np.nan] * 4, rtol=1e-9)
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True) * mask[:, None, :, None]
    np.testing.assert_allclose(moments.directions, unit.sum(2), atol=1e-12)
    np.testing.assert_allclose(stream.directions, unit[:, 0].sum(1), atol=1e-12)
