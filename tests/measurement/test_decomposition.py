"""Matrices are decomposed once a sample's transfer is there, and never where training would wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from lightning_geo.functional import principal_subspace
from lightning_geo.measurement.collectors import score_pairs, weights
from lightning_geo.measurement.decomposition import principal_subspaces
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import Tap

FAMILIES = sorted({spec.family for spec in CATALOG.values()} - {"importance"})
DECOMPOSED = {"subspace", "weights", "projection", "score_spectra"}

#: Whatever LAPACK does to many matrices, and a GPU one after the other.
LAPACK = (
    "cholesky", "cholesky_ex", "eig", "eigh", "eigvals", "eigvalsh", "inv", "lstsq", "lu_factor",
    "matrix_rank", "pinv", "qr", "solve", "svd", "svdvals",
)  # fmt: skip


def observed(family: str) -> Measurement:
    """A measurement that has seen two sequences, one of them padded."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    ids, mask = torch.randint(1, 60, (2, 16)), torch.ones(2, 16, dtype=torch.long)
    mask[0, 9:] = 0
    names = tuple(name for name in select([family]) if not compares_samples(name))
    measurement = Measurement({"": Tap(model, ())}, names)
    with torch.no_grad(), measurement.observe():
        model(input_ids=ids, attention_mask=mask)
    assert not measurement.failures
    return measurement


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_decomposed_before_the_transfer_is_there(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(weights, "_waits", lambda x: True)  # as on a GPU
    for name in LAPACK:
        monkeypatch.setattr(torch.linalg, name, noted(name, getattr(torch.linalg, name)))
    derivation = observed(family).derive()
    assert not called
    derivation.finish()
    assert bool(called) == (family in DECOMPOSED)


@pytest.mark.parametrize("family", sorted(DECOMPOSED))
def test_ranks_measure_what_one_process_does(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = observed(family).compute().stacks.values()
    monkeypatch.setattr(score_pairs, "world_size", lambda: 2)  # these add up values, not products
    (as_rank,) = observed(family).compute().stacks.values()
    assert alone.keys() == as_rank.keys()
    for name, values in alone.items():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(as_rank[name], values, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", sorted(DECOMPOSED))
def test_what_is_discarded_has_no_value_wherever_it_is_decomposed(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for later in (False, True):
        monkeypatch.setattr(score_pairs, "world_size", lambda size=2 - later: size)
        monkeypatch.setattr(weights, "_waits", lambda x, later=later: later)
        measurement = observed(family)
        measurement.discard_values()
        (arrays,) = measurement.compute().stacks.values()
        found.append({name: np.isnan(values).tolist() for name, values in arrays.items()})
    assert found[0] == found[1]


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
