"""Whitening of weights, whatever their rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_geo.functional.head_products import whitener


@pytest.mark.parametrize("smallest", [1.0, 1e-4, 2e-5, 5e-6, 1e-9, 0.0])
def test_rows_are_orthonormal_in_the_dimensions_that_a_weight_has(smallest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(3, n, 4, generator=generator, dtype=torch.float64)).Q for n in (4, 9)
    )
    sizes = torch.tensor([3.0, 2.0, 1.5, 3 * smallest], dtype=torch.float64)
    weight = (left * sizes) @ right.mT
    weight[2] = 0.0
    gram = weight @ weight.mT
    gram[1] = torch.nan
    white = whitener(gram)
    assert white[1].isnan().all()
    assert not white[2].any()
    rows = white[0].T @ weight[0]
    dimensions = right[0][:, : 4 if smallest > 1e-5 else 3]
    projector = rows.T @ rows
    np.testing.assert_allclose(projector, dimensions @ dimensions.T, atol=1e-5)
