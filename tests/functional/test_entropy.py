from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_geo.functional import key_entropy, normalized_entropy


def test_normalized_entropy_spans_zero_to_one():
    entropy = torch.tensor([0.0, np.log(2), np.log(7) * (1 + 2e-7), 0.0, 0.0, torch.nan]).float()
    got = normalized_entropy(entropy, torch.tensor([2, 2, 7, 1, 0, 5]))
    torch.testing.assert_close(
        got, torch.tensor([0.0, 1.0, 1.0, torch.nan, torch.nan, torch.nan]), equal_nan=True
    )
    assert got[2] <= 1
    floats = normalized_entropy(entropy, torch.tensor([2.0, 2.0, 7.0, 1.0, 0.0, 5.0]))
    torch.testing.assert_close(got, floats, equal_nan=True)


def test_key_entropy_extremes():
    stripe = torch.tensor([[0.0, 5.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, torch.nan, 1.0]])
    torch.testing.assert_close(
        key_entropy(stripe), torch.tensor([0.0, 1.0, torch.nan, torch.nan]), equal_nan=True
    )
    for keys in (6, 7, 10):  # unclamped, rounding takes these above 1
        assert 1 - 1e-6 < key_entropy(torch.full((1, keys), 1 / 3)).item() <= 1
    assert key_entropy(stripe[:, :1]).isnan().all()


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
