"""From statistics to arrays: where numbers go, and what has none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_geo.measurement.assemble import Computed, derive
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.selection import select
from lightning_geo.observe import AttentionCall, CallKey, LayerNumbering

KEYS = [CallKey(f"layers.{i}") for i in range(3)]


def call_of(seed: int, heads: int = 4, kv_heads: int = 2, size: int = 6) -> AttentionCall:
    generator = torch.Generator().manual_seed(seed)
    q, k, v, o = (torch.randn(3, h, 9, size, generator=generator) for h in (heads, kv_heads, kv_heads, heads))
    return AttentionCall(q, k, v, o)


def computed(
    calls: dict[int, AttentionCall],
    *,
    metrics: tuple[str, ...] = select(),
    reports: Callable[[CallKey], bool] = lambda key: True,
    earlier: Computed | None = None,
    rank: int = 2,
) -> Computed:
    """A stack of three layers, of which some have attention."""
    sample = SampleStatistics(metrics)
    for index, call in calls.items():
        sample.attention(KEYS[index], call)
    layout = LayerNumbering(
        {KEYS[i]: ("stack", i) for i in calls},
        {KEYS[i]: f"layers.{i}" for i in calls},
        {"stack": 3},
        {"stack": ("layers.0", "layers.1", "layers.2")},
    )
    bases = None if earlier is None else earlier.bases
    return derive(sample, layout, metrics, rank, reports, bases, bases).finish()


def test_layers_without_attention_are_rows_without_a_value() -> None:
    result = computed({0: call_of(0), 2: call_of(1)})
    assert result.structure == {
        "stack": {"modules": ["layers.0", "layers.1", "layers.2"], "heads": [4, 0, 4]}
    }
    arrays = result.stacks["stack"]
    assert list(arrays) == [name for name in select() if name in arrays]
    for name, array in arrays.items():
        assert array.dtype == np.float32
        if name not in ("update_ratio", "padding_visible.probe", "padding_visible.batch"):  # no padding
            assert np.isnan(array[1]).all(), name
            assert np.isfinite(array[[0, 2]]).all(), name
    assert not any(name.startswith("velocity") for name in arrays)
    assert all((arrays[name][[0, 2]] == 0).all() for name in arrays if name.startswith("drift"))


def test_query_heads_share_their_keys_numbers() -> None:
    arrays = computed({0: call_of(0), 1: call_of(1), 2: call_of(2)}).stacks["stack"]
    for name in ("effective_rank.key", "stable_rank.value", "drift.key"):
        array = arrays[name]
        np.testing.assert_array_equal(array[:, 0], array[:, 1], err_msg=name)
        np.testing.assert_array_equal(array[:, 2], array[:, 3], err_msg=name)
    assert (arrays["effective_rank.key"][:, 0] != arrays["effective_rank.key"][:, 2]).all()
    assert (arrays["effective_rank.query"][:, 0] != arrays["effective_rank.query"][:, 1]).all()


def test_fewer_heads_and_smaller_ones_are_padded() -> None:
    calls = {0: call_of(0), 1: call_of(1, heads=2, kv_heads=2, size=4), 2: call_of(2)}
    result = computed(calls)
    entropy = result.stacks["stack"]["entropy"]
    assert entropy.shape == (3, 4)
    assert np.isfinite(entropy).tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    basis = result.bases["stack"]["query"]
    assert basis.shape == (3, 4, 6, 2)
    alone = computed({1: calls[1]}).bases["stack"]["query"]
    torch.testing.assert_close(basis[1, :2, :4], alone[1])
    assert (basis[1, :2, 4:] == 0).all()
    assert basis[1, 2:].isnan().all()
    torch.testing.assert_close(
        computed(calls, rank=99).bases["stack"]["query"].shape[-1], 2
    )  # half the smallest


def test_layers_that_are_not_chosen_are_absent() -> None:
    calls = {i: call_of(i) for i in range(3)}
    some = computed(calls, reports=lambda key: key.module == "layers.1")
    whole = computed(calls)
    for name, array in some.stacks["stack"].items():
        np.testing.assert_array_equal(array[1], whole.stacks["stack"][name][1])
        assert np.isnan(array[[0, 2]]).all()
    assert some.structure["stack"] == {"modules": ["layers.0", "layers.1", "layers.2"], "heads": [0, 4, 0]}
    assert computed(calls, reports=lambda key: False).stacks == {}


def test_drift_and_velocity_compare_bases() -> None:
    first, second = computed({0: call_of(0)}), computed({0: call_of(1)}, earlier=computed({0: call_of(0)}))
    for role in ("query", "key", "value", "output"):
        u, v = (r.bases["stack"][role][0].double() for r in (first, second))
        expected = (1 - (u.mT @ v).square().sum((-1, -2)) / 2).sqrt()
        for name in (f"drift.{role}", f"velocity.{role}"):
            np.testing.assert_allclose(second.stacks["stack"][name][0], expected, atol=1e-5)
    matrices = second.matrices()["stack"]
    assert {name: array.shape for name, array in matrices.items()} == {
        **{f"basis.{role}": (3, 4, 6, 2) for role in ("query", "key", "value", "output")},
        "head_similarity": (3, 4, 4),
    }


def test_another_shape_of_bases_is_not_compared() -> None:
    other = computed({0: call_of(0, size=8)})
    arrays = computed({0: call_of(1)}, earlier=other).stacks["stack"]
    assert not any(name.startswith(("drift", "velocity")) for name in arrays)


@pytest.mark.parametrize("metrics", [select(), select("subspace"), select("entropy"), select("cone")])
@pytest.mark.parametrize("role", ["query", "value"])
def test_what_is_not_finite_is_told_by_module_and_spoils_its_own_layer(
    metrics: tuple[str, ...], role: str
) -> None:
    calls = {i: call_of(i) for i in range(3)}
    x: Tensor = getattr(calls[1], role)
    x[0, 0, 0, 0] = torch.nan
    whole, result = (
        computed({i: call_of(i) for i in range(3)}, metrics=metrics),
        computed(calls, metrics=metrics),
    )
    seen = (
        metrics == select() or "effective_rank.query" in metrics or (role == "query" and "entropy" in metrics)
    )
    assert result.broken == ({"layers.1": "stack/1"} if seen else {})
    assert whole.broken == {}
    for name, array in result.stacks["stack"].items():
        expected = whole.stacks["stack"][name]
        np.testing.assert_array_equal(array[[0, 2]], expected[[0, 2]], err_msg=name)
    if "effective_rank.query" in metrics:
        assert np.isnan(result.stacks["stack"][f"effective_rank.{role}"][1]).any()
