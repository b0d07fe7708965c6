"""Decompositions on the host's threads give what the public function gives."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import principal_subspace
from lightning_geo.measurement.decomposition import principal_subspaces


@given(st.integers(1, 70), st.integers(2, 9), st.integers(0, 2**31), st.booleans())
def test_many_matrices_are_decomposed_like_each(count: int, width: int, seed: int, broken: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(count, width, width + 1, generator=generator)
    roots[0] = 0.0  # no spread, no basis
    matrices = roots @ roots.mT
    if broken:
        matrices[-1, 0, 0] = torch.nan
    values, bases = principal_subspaces(matrices, rank=1)
    expected, directions = principal_subspace(matrices.double(), rank=1)
    scale = expected[:, :1].nan_to_num().float() + 1e-30
    torch.testing.assert_close(values / scale, (expected / scale).float(), atol=1e-5, rtol=0, equal_nan=True)
    assert torch.equal(bases.isnan(), directions.isnan())
    # the strongest direction is certain only where the second is weaker
    certain = expected[:, 1] < 0.9 * expected[:, 0]
    overlap = (bases.double() * directions).sum(1).abs()[certain]
    torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-4, rtol=0)
