from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import (
    principal_angles,
    principal_subspace,
    projection_similarity,
    subspace_distance,
)

SEEDS = st.integers(0, 2**32 - 1)


def basis(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=shape))[0]


def tilted(rng: np.random.Generator, width: int, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two bases ``[width, r]`` whose principal angles are ``angles``, each turned within its own space."""
    rank = len(angles)
    both = basis(rng, width, 2 * rank)
    u, aside = both[:, :rank], both[:, rank:]
    v = u * np.cos(angles) + aside * np.sin(angles)
    return u @ basis(rng, rank, rank), v @ basis(rng, rank, rank)


def test_a_subspace_that_only_rounding_would_choose_is_nan():
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(-2, keepdim=True)  # five centred tokens span four dimensions
    covariance = x.mT @ x
    eigenvalues, u = principal_subspace(covariance, 4)
    assert u.isfinite().all()
    assert (eigenvalues > 0).sum(-1).tolist() == [4, 4]
    assert torch.linalg.eigvalsh(covariance)[:, :-4].ne(0).any()  # rounding that was there
    assert principal_subspace(covariance, 5)[1].isnan().all()
    assert principal_subspace(torch.zeros(3, 3), 1)[1].isnan().all()
    assert principal_subspace(torch.zeros(3, 3), 1)[0].eq(0).all()


# ---- angles and distances ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("angle", [1e-6, 1e-5, 1e-4, 1e-3, 0.3, math.pi / 4, math.pi / 2 - 1e-5])
def test_small_and_right_angles_survive(angle, dtype):
    rng = np.random.default_rng(0)
    u, v = (torch.tensor(b).to(dtype) for b in tilted(rng, 64, np.linspace(0.5, 1, 8) * angle))
    # against the same rounded bases: rounding them to float32 turns the spaces by 1e-7 by itself
    expected = scipy.linalg.subspace_angles(u.double().numpy(), v.double().numpy())[::-1]
    np.testing.assert_allclose(principal_angles(u, v), expected, rtol=1e-6, atol=1e-10)
    distance = np.sqrt(np.mean(np.sin(expected) ** 2))
    np.testing.assert_allclose(subspace_distance(u, v), distance, rtol=1e-6, atol=1.5e-7)
    np.testing.assert_allclose(projection_similarity(u, v), np.mean(np.cos(expected) ** 2), atol=3e-7)


@given(seed=SEEDS, exponents=st.lists(st.floats(-9, 0), min_size=1, max_size=8))
def test_angles_of_any_sizes_together_are_those_built_in(seed, exponents):
    angles = np.sort(math.pi / 2 * 10.0 ** np.array(exponents))
    u, v = (torch.tensor(b) for b in tilted(np.random.default_rng(seed), 24, angles))
    np.testing.assert_allclose(principal_angles(u, v), angles, rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        subspace_distance(u, v), np.sqrt(np.mean(np.sin(angles) ** 2)), rtol=0, atol=1e-14
    )


def test_same_and_orthogonal_spaces_are_exact():
    both = torch.linalg.qr(torch.randn(200, 64, 16, generator=torch.Generator().manual_seed(1))).Q
    u, v = both[..., :8], both[..., 8:]
    # unclamped, rounding takes some of these above 1
    assert projection_similarity(u, u).max() == 1
    assert subspace_distance(u, v).max() == 1
    assert projection_similarity(u, u).min() > 1 - 1e-6
    assert subspace_distance(u, v).min() > 1 - 1e-6
    assert projection_similarity(u, v).max() < 1e-12
    assert subspace_distance(u, u).max() < 1e-6
    assert principal_angles(u, u).max() < 1e-6


def test_chance_level_is_rank_over_width():
    rng = np.random.default_rng(0)
    u, v = (torch.tensor(basis(rng, 2000, 32, 8)) for _ in range(2))
    assert abs(projection_similarity(u, v).mean().item() - 8 / 32) < 0.005


E = torch.eye(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: projection_similarity(E[:, :2], E[:, :3]),
            ValueError,
            r"equal d and r but got \[4, 2\] and \[4, 3\]",
        ),
        (
            lambda: subspace_distance(E[:, :2], E[:3, :2]),
            ValueError,
            r"equal d and r but got \[4, 2\] and \[3, 2\]",
        ),
        (lambda: principal_angles(E[:, :2], E[:3, :2]), ValueError, r"equal d but got \[4, 2\] and \[3, 2\]"),
        (
            lambda: principal_angles(E[:2], E[:, :2]),
            ValueError,
            r"`u` to hold 1 to d basis vectors.*\[2, 4\].*Transpose",
        ),
        (
            lambda: projection_similarity(E[0], E[0]),
            ValueError,
            r"`u` to have shape \[..., d, r\] but got \[4\]",
        ),
        (lambda: subspace_distance(E, E.long()), TypeError, "`v` to be a floating point tensor"),
        (lambda: principal_subspace(E, 5), ValueError, "`rank` to be between 1 and d = 4 but got 5"),
        (lambda: principal_subspace(E, 0), ValueError, "`rank` to be between 1 and d = 4 but got 0"),
        (
            lambda: principal_subspace(E[:2], 1),
            ValueError,
            r"`covariance` to have shape \[..., d, d\] but got \[2, 4\]",
        ),
    ],
)
@pytest.mark.wrong_arguments
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
