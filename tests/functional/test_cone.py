from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import cone_index, mean_cosine, metric_function
from lightning_geo.functional.cone import sum_of_directions


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), d=st.integers(1, 32))
def test_index_and_mean_cosine_say_the_same(seed, n, d):
    x = torch.tensor(np.random.default_rng(seed).normal(0.3, 1, (2, n, d)), dtype=torch.float32)
    torch.testing.assert_close(cone_index(x).square(), n + n * (n - 1) * mean_cosine(x), rtol=1e-5, atol=1e-4)


def test_zero_vectors_have_no_direction():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    assert cone_index(x) == 2
    torch.testing.assert_close(cone_index(x, normalized=True), torch.tensor(2 / 3))
    torch.testing.assert_close(mean_cosine(x), torch.tensor(1 / 3))  # one pair of three is defined
    assert mean_cosine(torch.zeros(4, 3)) == 0


def test_short_vectors_have_a_direction():
    x = torch.tensor([[1.0, 0.0], [1e-15, 0.0], [0.0, 1e15]])
    torch.testing.assert_close(cone_index(x), torch.tensor(5.0).sqrt())
    torch.testing.assert_close(mean_cosine(x), torch.tensor(1 / 3))


def test_a_mask_of_size_one_speaks_for_the_whole_sequence():
    x = torch.ones(2, 3, 4)
    mask = torch.tensor([[True], [False]])
    torch.testing.assert_close(cone_index(x, mask), torch.tensor([3.0, torch.nan]), equal_nan=True)
    torch.testing.assert_close(
        cone_index(x, mask, normalized=True), torch.tensor([1.0, torch.nan]), equal_nan=True
    )
    torch.testing.assert_close(mean_cosine(x, mask), torch.tensor([1.0, torch.nan]), equal_nan=True)


def test_ranges_are_not_left_by_rounding():
    x = torch.randn(500, 1, 17, generator=torch.Generator().manual_seed(0)).expand(500, 33, 17)
    assert (cone_index(x) / 33).max() > 1  # what the clamp is for
    assert cone_index(x, normalized=True).max() <= 1
    assert mean_cosine(x).max() <= 1
    opposite = torch.stack([x[:, 0], -x[:, 0]], dim=1)
    assert mean_cosine(opposite).min() >= -1


def test_head_outputs_share_their_sequence_mask():
    x = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    for name, function in (("cone_index.head", cone_index), ("mean_cosine.head", mean_cosine)):
        got = metric_function(name)(*sum_of_directions(x, mask[:, None]))
        assert got.shape == (2, 3)
        torch.testing.assert_close(got[1], function(x[1, :, :5]))
    torch.testing.assert_close(
        metric_function("cone.head")(*sum_of_directions(x, mask[:, None]))[0],
        cone_index(x[0], normalized=True),
    )


@pytest.mark.parametrize(
    ("x", "mask", "error", "message"),
    [
        (torch.ones(3), None, ValueError, r"`x` to have shape \[..., n, d\] but got \[3\]"),
        (
            torch.ones(3, 2, dtype=torch.long),
            None,
            TypeError,
            "`x` to be a floating point tensor but got torch.int64",
        ),
        ([[1.0]], None, TypeError, "`x` to be a torch.Tensor but got list"),
        (
            torch.ones(3, 2),
            torch.ones(3),
            TypeError,
            r"`mask` to be a boolean tensor.*torch.float32.*\.bool\(\)",
        ),
        (torch.ones(3, 2), [True], TypeError, "`mask` to be a boolean tensor.*but got list"),
        (torch.ones(3, 2), torch.ones(2).bool(), ValueError, r"`mask` to have shape \[3\].*but got \[2\]"),
        (torch.ones(3, 3, 5, 2), torch.ones(3, 5).bool(), ValueError, r"\[3, 3, 5\].*but got \[3, 5\]"),
    ],
)
@pytest.mark.wrong_arguments
def test_bad_input_is_named(x, mask, error, message):
    for function in (cone_index, mean_cosine):
        with pytest.raises(error, match=message):
            function(x, mask)
