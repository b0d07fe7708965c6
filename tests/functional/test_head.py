from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import complementarity, head_similarity, linear_cka, redundancy


def covariance_of(x: np.ndarray) -> torch.Tensor:
    """``[n, H, D] -> [H, D, H, D]``."""
    centred = (x - x.mean(0)).reshape(len(x), -1)
    return torch.tensor(centred.T @ centred / len(x)).reshape(*x.shape[1:], *x.shape[1:])


def test_ranges_are_not_left_by_rounding():
    x = torch.randn(200, 30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert linear_cka(x, 3 * x.flip(-1)).max() == 1  # unclamped, some are above
    twins = torch.stack([x, 3 * x], dim=-2).float()
    twins = (twins - twins.mean(1, keepdim=True)).flatten(2)
    covariance = (twins.mT @ twins).reshape(200, 2, 5, 2, 5)
    assert head_similarity(covariance).max() == 1
    assert redundancy(covariance).max() == 1


@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 6),
    width=st.integers(1, 5),
    rank=st.integers(1, 8),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    dead=st.integers(0, 2),
)
def test_complementarity_stays_in_its_range(seed, heads, width, rank, spread, dead):
    rng = np.random.default_rng(seed)
    # any positive semidefinite matrix: low rank, heads of very different size, heads that are zero
    factor = rng.normal(size=(rank, heads, width)) * 10 ** rng.uniform(-spread, spread, (heads, 1))
    factor[:, 1 : 1 + dead] = 0
    flat = factor.reshape(rank, -1)
    covariance = torch.tensor(flat.T @ flat).reshape(heads, width, heads, width)
    exact = complementarity(covariance).item()
    # heads * width is the most that the heads' own dimensions can sum to, 1 the least that all have together
    assert 1 / (heads * width) - 1e-9 <= exact <= 1
    torch.testing.assert_close(complementarity(covariance.float()).item(), exact, rtol=1e-4, atol=0)


def test_complementarity_has_known_values():
    block = np.diag([3.0, 2.0, 1.0])
    apart = torch.tensor(np.kron(np.eye(4), block)).reshape(4, 3, 4, 3)
    copies = torch.tensor(np.kron(np.ones((4, 4)), block)).reshape(4, 3, 4, 3)
    np.testing.assert_allclose([complementarity(apart), complementarity(copies)], [1, 1 / 4])
    # one head outweighs another: less than copies would have, though the two are uncorrelated
    uneven = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    uneven[0, 0, 0, 0] = 1e8
    uneven[1, :, 1, :] = torch.eye(3)
    np.testing.assert_allclose(complementarity(uneven), 1 / 4, rtol=1e-6)


def test_dead_heads_are_undefined_and_spoil_nobody():
    x = np.random.default_rng(0).normal(size=(50, 3, 4))
    x[:, 1] = 7.0
    covariance = covariance_of(x)
    assert head_similarity(covariance).isnan().tolist() == [
        [False, True, False],
        [True] * 3,
        [False, True, False],
    ]
    assert redundancy(covariance).isnan().tolist() == [False, True, False]
    alive = covariance[[0, 2]][:, :, [0, 2]]
    torch.testing.assert_close(complementarity(covariance), complementarity(alive))
    torch.testing.assert_close(redundancy(covariance)[[0, 2]], redundancy(alive))
    assert redundancy(alive[:1, :, :1]).isnan().all()
    assert redundancy(torch.zeros(2, 3, 2, 3)).isnan().all()
    assert complementarity(torch.zeros(2, 3, 2, 3)).isnan()


def test_broken_outputs_stay_visible():
    covariance = covariance_of(np.random.default_rng(0).normal(size=(50, 3, 4)))
    covariance[1] = covariance[:, :, 1] = torch.nan
    assert redundancy(covariance).isnan().tolist() == [False, True, False]
    assert complementarity(covariance).isnan()


@pytest.mark.wrong_arguments
def test_bad_input_is_named():
    for function in (head_similarity, redundancy, complementarity):
        with pytest.raises(
            ValueError, match=r"`covariance` to have shape \[..., H, D, H, D\] but got \[4, 4\]"
        ):
            function(torch.ones(4, 4))
        with pytest.raises(ValueError, match=r"but got \[2, 3, 3, 2\]"):
            function(torch.ones(2, 3, 3, 2))
    with pytest.raises(ValueError, match=r"same n tokens.*\[3, 2\] and \[4, 2\]"):
        linear_cka(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(TypeError, match="`y` to be a floating point tensor"):
        linear_cka(torch.ones(3, 2), torch.ones(3, 2).long())
