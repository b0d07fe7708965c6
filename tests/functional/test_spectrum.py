from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import (
    effective_rank,
    metric_function,
    participation_ratio,
    stable_rank,
    top_share,
)

SEEDS = st.integers(0, 2**32 - 1)


RANKS = (effective_rank, participation_ratio, stable_rank, top_share)


@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 20), decay=st.floats(0, 5))
def test_ranks_keep_their_order(seed, d, decay):
    rng = np.random.default_rng(seed)
    eigenvalues = torch.tensor(rng.gamma(1.0, size=(3, d)) * np.exp(-decay * np.arange(d)) + 1e-12)
    ranks = (stable_rank, participation_ratio, metric_function("effective_rank.query"))
    chain = [torch.ones(3), *(rank(eigenvalues) for rank in ranks), torch.full((3,), float(d))]
    for low, high in itertools.pairwise(chain):
        assert (low <= high * (1 + 1e-5)).all()


@pytest.mark.parametrize("function", RANKS)
def test_known_values(function):
    torch.testing.assert_close(function(torch.ones(7)), torch.tensor(1 / 7 if function is top_share else 7.0))
    torch.testing.assert_close(function(torch.tensor([2.0, 0.0])), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: effective_rank(torch.tensor(1.0)),
            ValueError,
            r"`singular_values` to have shape \[..., d\] but got \[\]",
        ),
        (lambda: stable_rank(torch.ones(3).long()), TypeError, "`eigenvalues` to be a floating point tensor"),
    ],
)
@pytest.mark.wrong_arguments
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
