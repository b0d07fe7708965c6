from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import assume, given
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


@given(
    seed=SEEDS,
    lead=st.lists(st.integers(1, 3), max_size=2),
    d=st.integers(2, 12),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_principal_subspace_agrees_with_svd(seed, lead, d, dtype):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*lead, 40, d)) * np.exp(-0.3 * np.arange(d)) @ basis(rng, d, d)
    covariance = torch.tensor(np.swapaxes(x, -1, -2) @ x).to(dtype)
    covariance = (covariance + covariance.mT) / 2
    rank = int(rng.integers(1, d + 1))
    eigenvalues, u = principal_subspace(covariance, rank)
    assert eigenvalues.shape == (*lead, d)
    assert u.shape == (*lead, d, rank)
    exact = covariance.double().numpy()
    vectors, values, _ = np.linalg.svd(
        exact
    )  # a bf16 covariance may have a negative eigenvalue: its sign is lost
    assume(dtype != torch.bfloat16 or np.linalg.eigvalsh(exact).min() > 0)
    np.testing.assert_allclose(eigenvalues, values, atol=values.max() * 1e-5)
    assert (eigenvalues.diff(dim=-1) <= 0).all()
    assert (eigenvalues >= 0).all()
    assert u.isfinite().all()
    gaps = values[..., rank - 1] - values[..., rank] if rank < d else values[..., -1]
    assume((gaps > values[..., 0] * 1e-3).all())
    projector = vectors[..., :rank] @ np.swapaxes(vectors[..., :rank], -1, -2)
    # rounding turns a subspace by about eps over the gap to the next direction, which is 1e-3 at least
    np.testing.assert_allclose(u @ u.mT, projector, atol=1.2e-4 if dtype != torch.float64 else 1e-9)


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


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_broken_covariance_spoils_only_itself(bad):
    covariance = torch.diag_embed(torch.tensor([[3.0, 2.0, 1.0]] * 3))
    covariance[1, 0, 2] = bad
    eigenvalues, u = principal_subspace(covariance, 2)
    assert eigenvalues.isnan().all(-1).tolist() == [False, True, False]
    assert u.isnan().flatten(1).all(-1).tolist() == [False, True, False]
    v = torch.eye(3)[:, :2].expand(3, 3, 2)
    for compared in (projection_similarity(u, v), subspace_distance(u, v), principal_angles(u, v)[:, 0]):
        assert compared.isnan().tolist() == [False, True, False]


# ---- angles and distances ----


@given(
    seed=SEEDS,
    d=st.integers(1, 12),
    ranks=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_angles_of_any_columns_agree_with_scipy(seed, d, ranks, dtype):
    rng = np.random.default_rng(seed)
    u, v = (torch.tensor(rng.normal(size=(2, d, min(r, d)))).to(dtype) for r in ranks)
    u[..., 0] = v[..., 0]  # a direction in common
    assume(all(np.linalg.cond(m.double().numpy()).max() < 1e4 for m in (u, v)))
    expected = [
        scipy.linalg.subspace_angles(a, b)[::-1]
        for a, b in zip(u.double().numpy(), v.double().numpy(), strict=True)
    ]
    got = principal_angles(u, v)
    assert got.dtype == dtype
    assert (got.diff(dim=-1) >= 0).all()
    # SciPy takes the arc cosine of a small angle beside a large one: its own error is some 1e-8
    np.testing.assert_allclose(got, expected, atol=2e-7 if dtype == torch.float64 else 1e-6)
    torch.testing.assert_close(principal_angles(v, u), got)


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


@given(seed=SEEDS, d=st.integers(1, 16), lead=st.lists(st.integers(1, 3), max_size=2))
def test_similarity_and_distance_are_those_of_the_angles(seed, d, lead):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, d + 1))
    u, v = (torch.tensor(basis(rng, *lead, d, rank)) for _ in range(2))
    angles = principal_angles(u, v)
    torch.testing.assert_close(projection_similarity(u, v), angles.cos().square().mean(-1))
    torch.testing.assert_close(
        subspace_distance(u, v), angles.sin().square().mean(-1).sqrt(), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(subspace_distance(v, u), subspace_distance(u, v), atol=1e-12, rtol=0)
    # which basis of the space, and where the space lies, does not matter
    inner, outer = (torch.tensor(basis(rng, n, n)) for n in (rank, d))
    for function in (projection_similarity, subspace_distance, principal_angles):
        torch.testing.assert_close(function(outer @ u @ inner, outer @ v), function(u, v), atol=1e-7, rtol=0)


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
