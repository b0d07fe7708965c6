from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
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


@given(
    seed=SEEDS,
    lead=st.lists(st.integers(1, 3), max_size=2),
    d=st.integers(1, 20),
    decay=st.floats(0, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_ranks_agree_with_definitions_and_keep_their_order(seed, lead, d, decay, dtype):
    rng = np.random.default_rng(seed)
    spectrum = rng.gamma(1.0, size=(*lead, d)) * np.exp(-decay * np.arange(d)) + 1e-12
    eigenvalues = torch.tensor(spectrum).to(dtype)
    exact = eigenvalues.double().numpy()
    tolerance = {"rtol": 1e-10 if dtype == torch.float64 else 2e-6}
    got = {
        "stable": stable_rank(eigenvalues),
        "participation": participation_ratio(eigenvalues),
        "effective": metric_function("effective_rank.query")(eigenvalues),
    }
    sigma = np.sqrt(exact)
    np.testing.assert_allclose(got["effective"], np.exp(scipy.stats.entropy(sigma, axis=-1)), **tolerance)
    np.testing.assert_allclose(got["participation"], exact.sum(-1) ** 2 / (exact**2).sum(-1), **tolerance)
    np.testing.assert_allclose(got["stable"], exact.sum(-1) / exact.max(-1), **tolerance)
    np.testing.assert_allclose(top_share(eigenvalues), exact.max(-1) / exact.sum(-1), **tolerance)
    np.testing.assert_allclose(
        effective_rank(eigenvalues), np.exp(scipy.stats.entropy(exact, axis=-1)), **tolerance
    )
    chain = [torch.ones(lead), *got.values(), torch.full(lead, float(d))]
    for low, high in itertools.pairwise(chain):
        assert (low <= high * (1 + 1e-5)).all()


RANKS = (effective_rank, participation_ratio, stable_rank, top_share)


@pytest.mark.parametrize("function", RANKS)
def test_ranks_ignore_scale_order_and_rounding_below_zero(function):
    spectrum = torch.tensor([5.0, 3.0, 0.5, 0.0])
    torch.testing.assert_close(function(spectrum * 1e-18), function(spectrum))
    torch.testing.assert_close(function(spectrum * 1e18), function(spectrum))
    torch.testing.assert_close(function(spectrum.flip(-1)), function(spectrum))
    torch.testing.assert_close(function(torch.tensor([5.0, 3.0, 0.5, -1e-7])), function(spectrum))
    torch.testing.assert_close(function(torch.ones(7)), torch.tensor(1 / 7 if function is top_share else 7.0))
    torch.testing.assert_close(function(torch.tensor([2.0, 0.0])), torch.tensor(1.0))


@pytest.mark.parametrize("function", RANKS)
def test_ranks_of_nothing_are_nan(function):
    spectra = torch.tensor([[0.0, 0.0], [1.0, 1.0], [torch.nan, 1.0], [-1e-9, 0.0]])
    assert function(spectra).isnan().tolist() == [True, False, True, True]


# ---- principal subspace ----


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
