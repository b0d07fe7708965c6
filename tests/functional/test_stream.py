from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_geo.functional import (
    cone_index,
    kurtosis,
    skewness,
    stream_statistics,
    token_norm,
    update_ratio,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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


def test_statistics_have_the_cone_and_no_change_without_an_input():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    statistics = stream_statistics(x, mask)
    torch.testing.assert_close(torch.linalg.vector_norm(statistics.directions, dim=-1), cone_index(x, mask))
    assert statistics.update_ratio is None


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
