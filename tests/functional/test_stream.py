from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import (
    cone_index,
    kurtosis,
    metric_function,
    skewness,
    stream_statistics,
    token_norm,
    update_ratio,
)
from lightning_geo.metrics.registry import reads_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def moment(function, tokens: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns about constant tokens and returns NaN for them
        return float(np.nanmean(function(tokens, axis=-1))) if len(tokens) else np.nan


def reference(x: np.ndarray, before: np.ndarray) -> list[float]:
    """Norm, skewness, kurtosis, update ratio of one sequence [n, d] in float64, token by token."""
    lengths = [float(np.sqrt(np.sum(t**2))) for t in x]
    ratios = [
        float(np.sqrt(np.sum((t - b) ** 2)) / np.sqrt(np.sum(b**2)))
        for t, b in zip(x, before, strict=True)
        if b.any()
    ]
    return [
        float(np.mean(lengths)) if lengths else np.nan,
        moment(scipy.stats.skew, x),
        moment(scipy.stats.kurtosis, x),
        float(np.mean(ratios)) if ratios else np.nan,
    ]


@given(
    seed=st.integers(0, 2**32 - 1),
    lead=st.lists(st.integers(1, 3), max_size=2),
    n=st.integers(0, 7),
    d=st.integers(3, 12),
    dtype=st.sampled_from(DTYPES),
    keep=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_agrees_with_scipy(seed, lead, n, d, dtype, keep):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.gamma(1.0, size=(*lead, n, d)) + rng.normal()).to(dtype)
    before = torch.tensor(rng.normal(size=(*lead, n, d))).to(dtype)
    before[torch.tensor(rng.random((*lead, n)) < 0.1)] = 0
    mask = torch.tensor(rng.random((*lead, n)) < keep)
    x[~mask], before[~mask] = float(rng.choice([np.nan, np.inf])), np.nan
    results = [token_norm(x, mask), skewness(x, mask), kurtosis(x, mask), update_ratio(x, before, mask)]
    for result in results:
        assert result.shape == tuple(lead)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for where in np.ndindex(*lead):
        valid = mask[where]
        expected = reference(x[where][valid].double().numpy(), before[where][valid].double().numpy())
        got = [float(result[where]) for result in results]
        tolerance = 1e-9 if dtype == torch.float64 else 2e-5
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), shift=st.floats(-5, 5))
def test_moments_are_blind_to_scale_and_offset(seed, scale, shift):
    x = torch.tensor(np.random.default_rng(seed).gamma(1.0, size=(4, 16)))
    torch.testing.assert_close(skewness(x * scale + shift), skewness(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(skewness(-x), -skewness(x))
    torch.testing.assert_close(kurtosis(-x * scale + shift), kurtosis(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(token_norm(-x * scale), scale * token_norm(x))
    torch.testing.assert_close(update_ratio(x * (1 + scale), x), torch.tensor(scale, dtype=x.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0.0, 0.1, -333.0])
def test_equal_features_have_no_shape(level, dtype):
    flat = torch.full((3, 769), level, dtype=dtype)  # 769: the mean of equal numbers is rounded
    assert skewness(flat).isnan()
    assert kurtosis(flat).isnan()
    mixed = torch.cat([flat, torch.tensor([[0.0] * 768 + [1.0]], dtype=dtype)])
    torch.testing.assert_close(skewness(mixed), skewness(mixed[3:]))


def test_outliers_do_not_overflow():
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    x[:, 7] = 1e12  # to the fourth power more than float32 holds
    np.testing.assert_allclose(
        kurtosis(x), scipy.stats.kurtosis(x.double().numpy(), axis=-1).mean(), rtol=1e-5
    )


def test_undefined_is_nan_and_broken_tokens_stay_visible():
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    nobody = torch.tensor([[True] * 3, [False] * 3])
    broken = x.clone()
    broken[0, 1, 2] = torch.nan
    for function in (
        token_norm,
        skewness,
        kurtosis,
        lambda y, m=None: update_ratio(y, torch.ones_like(y), m),
    ):
        assert function(x, nobody).isnan().tolist() == [False, True]
        assert function(broken).isnan().tolist() == [True, False]
    assert update_ratio(x, torch.zeros_like(x)).isnan().all()
    assert update_ratio(x, broken).isnan().tolist() == [True, False]


def test_the_mean_of_each_plane_is_the_public_function():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    before, mask = x + 1, torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    statistics = stream_statistics(x, mask, before)
    functions = {"hidden_norm": token_norm, "skewness": skewness, "kurtosis": kurtosis}
    for name, function in functions.items():
        (field,) = reads_of(name)
        plane = metric_function(name)(getattr(statistics, field))
        assert torch.equal(plane.nanmean(-1), function(x, mask))
    assert torch.equal(statistics.update_ratio.nanmean(-1), update_ratio(x, before, mask))
    torch.testing.assert_close(torch.linalg.vector_norm(statistics.directions, dim=-1), cone_index(x, mask))
    assert stream_statistics(x, mask).update_ratio is None


@pytest.mark.wrong_arguments
def test_bad_input_is_named():
    x = torch.ones(2, 3, 4)
    with pytest.raises(
        ValueError, match=r"`before` to have the shape of `x`, \[2, 3, 4\], but got \[2, 3, 5\]"
    ):
        update_ratio(x, torch.ones(2, 3, 5))
    with pytest.raises(TypeError, match=r"`before` to be a floating point tensor but got torch.int64"):
        update_ratio(x, x.long())
    for function in (token_norm, skewness, kurtosis):
        with pytest.raises(ValueError, match=r"`x` to have shape \[..., n, d\] but got \[4\]"):
            function(x[0, 0])
        with pytest.raises(ValueError, match=r"`mask` to have shape \[2, 3\], or 1 in places, but got \[3\]"):
            function(x, torch.ones(3).bool())
