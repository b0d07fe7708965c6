"""``masked_mean`` along any axis, with masks that it shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import masked_mean


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    keep=st.sampled_from([0.0, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_masked_mean_is_the_mean_of_what_is_left(seed, shape, keep, dtype):
    rng = np.random.default_rng(seed)
    dim = int(rng.integers(-len(shape), len(shape)))
    values, mask = torch.tensor(rng.normal(size=shape)).to(dtype), torch.tensor(rng.random(shape) < keep)
    values[~mask] = float(rng.choice([np.nan, np.inf]))
    got = masked_mean(values, mask, dim)
    exact = np.ma.masked_array(values.double().numpy(), ~mask.numpy()).mean(dim)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(got, np.ma.filled(exact, np.nan), atol=1e-6)


def test_masked_mean_shares_a_mask_of_size_one_and_shows_what_is_broken():
    values = torch.tensor([[[1.0, 2.0], [3.0, torch.nan]]])
    assert masked_mean(values, torch.tensor([[[True, False]]])).tolist() == [[1.0, 3.0]]
    by_row = masked_mean(values, torch.tensor([[[True], [False]]]))
    assert by_row[0, 0] == 1.5
    assert by_row[0, 1].isnan()
    assert masked_mean(values).isnan().tolist() == [[False, True]]
    with pytest.raises(ValueError, match=r"`mask` to have shape \[1, 2, 2\].*but got \[1, 2\]"):
        masked_mean(values, torch.ones(1, 2).bool())
