from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import attention_statistics, key_entropy, metric_function, normalized_entropy


@given(seed=st.integers(0, 2**32 - 1), keys=st.integers(1, 30), temperature=st.floats(1e-3, 30))
def test_normalized_entropy_agrees_with_scipy(seed, keys, temperature):
    logits = np.random.default_rng(seed).normal(size=(4, keys)) * temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    entropy = scipy.stats.entropy(p, axis=-1)
    got = normalized_entropy(torch.tensor(entropy), torch.full((4,), keys))
    expected = entropy / np.log(keys) if keys > 1 else np.full(4, np.nan)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_normalized_entropy_spans_zero_to_one():
    entropy = torch.tensor([0.0, np.log(2), np.log(7) * (1 + 2e-7), 0.0, 0.0, torch.nan]).float()
    got = normalized_entropy(entropy, torch.tensor([2, 2, 7, 1, 0, 5]))
    torch.testing.assert_close(
        got, torch.tensor([0.0, 1.0, 1.0, torch.nan, torch.nan, torch.nan]), equal_nan=True
    )
    assert got[2] <= 1
    floats = normalized_entropy(entropy, torch.tensor([2.0, 2.0, 7.0, 1.0, 0.0, 5.0]))
    torch.testing.assert_close(got, floats, equal_nan=True)


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.lists(st.integers(1, 3), max_size=1),
    heads=st.integers(1, 3),
    keys=st.integers(1, 12),
    keep=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_key_entropy_agrees_with_scipy(seed, batch, heads, keys, keep, dtype):
    rng = np.random.default_rng(seed)
    received = torch.tensor(rng.gamma(0.3, size=(*batch, heads, keys)) * 50).to(dtype)
    mask = torch.tensor(rng.random((*batch, keys)) < keep)
    received = torch.where(mask[..., None, :], received, torch.nan)
    got = key_entropy(received, mask)
    assert got.shape == (*batch, heads)
    for where in np.ndindex(*batch, heads):
        valid = received[where].double().numpy()[mask[where[:-1]].numpy()]
        defined = len(valid) > 1 and valid.sum() > 0
        expected = scipy.stats.entropy(valid) / np.log(len(valid)) if defined else np.nan
        np.testing.assert_allclose(
            float(got[where]), expected, atol=1e-12 if dtype == torch.float64 else 3e-6
        )


@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(1e-6, 1e6))
def test_key_entropy_is_blind_to_scale_and_order(seed, factor):
    rng = np.random.default_rng(seed)
    received = torch.tensor(rng.gamma(0.5, size=(2, 9)))
    torch.testing.assert_close(
        key_entropy(received[:, torch.tensor(rng.permutation(9))] * factor), key_entropy(received)
    )


def test_key_entropy_extremes():
    stripe = torch.tensor([[0.0, 5.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, torch.nan, 1.0]])
    torch.testing.assert_close(
        key_entropy(stripe), torch.tensor([0.0, 1.0, torch.nan, torch.nan]), equal_nan=True
    )
    for keys in (6, 7, 10):  # unclamped, rounding takes these above 1
        assert 1 - 1e-6 < key_entropy(torch.full((1, keys), 1 / 3)).item() <= 1
    assert key_entropy(stripe[:, :1]).isnan().all()


def test_registered_functions_take_a_real_attention_call():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 6, 8, generator=generator), torch.randn(2, 2, 6, 8, generator=generator)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    statistics = attention_statistics(query, key, mask=mask[:, None, None], is_causal=True, query_mask=mask)
    scores = query.double() @ key.double().repeat_interleave(2, 1).mT / 8**0.5
    visible = mask[:, None, None] & torch.ones(6, 6).tril().bool()
    p = scores.masked_fill(~visible, -torch.inf).softmax(-1)

    rows = metric_function("normalized_entropy")(statistics.entropy, statistics.visible_keys)
    assert rows.shape == (2, 4, 6)
    assert rows[:, :, 0].isnan().all()  # the first query sees one key
    expected = scipy.stats.entropy(p[1, 2, 3, :4].numpy()) / np.log(4)
    np.testing.assert_allclose(float(rows[1, 2, 3]), expected, atol=1e-5)

    values = metric_function("key_entropy")(statistics.received, mask)
    expected = scipy.stats.entropy((p * mask[:, None, :, None]).sum(-2)[1, :, :4].numpy(), axis=-1) / np.log(
        4
    )
    np.testing.assert_allclose(values[1], expected, atol=1e-5)


@pytest.mark.wrong_arguments
def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match=r"`visible_keys` to have the shape of `entropy`, \[3\], but got \[2\]"
    ):
        normalized_entropy(torch.ones(3), torch.ones(2))
    with pytest.raises(TypeError, match=r"`entropy` to be a floating point tensor but got torch.int64"):
        normalized_entropy(torch.ones(3).long(), torch.ones(3))
    with pytest.raises(ValueError, match=r"`received` to have shape \[..., head, key\] but got \[3\]"):
        key_entropy(torch.ones(3))
    with pytest.raises(ValueError, match=r"`key_mask` to have shape \[2, 5\].*but got \[2, 3, 5\]"):
        key_entropy(torch.ones(2, 3, 5), torch.ones(2, 3, 5).bool())
    with pytest.raises(TypeError, match=r"`key_mask` to be a boolean tensor.*torch.int64"):
        key_entropy(torch.ones(2, 3, 5), torch.ones(2, 5).long())
