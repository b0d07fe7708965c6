from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.functional import cone_index, mean_cosine, metric_function
from lightning_geo.functional.cone import sum_of_directions

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def unit(vector: np.ndarray) -> np.ndarray:
    length = np.sqrt(sum(float(v) ** 2 for v in vector))
    return vector / length if length else np.zeros_like(vector)


def reference(tokens: np.ndarray) -> tuple[float, float, float]:
    """Index, cone and mean cosine of one sequence [n, d] in float64, pair by pair."""
    n = len(tokens)
    if n == 0:
        return np.nan, np.nan, np.nan
    index = float(np.linalg.norm(sum(unit(t) for t in tokens)))
    pairs = [float(unit(a) @ unit(b)) for a, b in itertools.permutations(tokens, 2)]
    return index, index / n, float(np.mean(pairs)) if pairs else np.nan


def sequences(seed: int, shape: tuple[int, ...], dtype: torch.dtype, keep: float):
    """Tokens with a common offset, some of them zero, and a mask; what is masked is NaN or infinite."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=shape) + rng.normal(size=shape[-1]) * rng.uniform(0, 3)).to(dtype)
    x[torch.tensor(rng.random(shape[:-1]) < 0.1)] = 0
    mask = torch.tensor(rng.random(shape[:-1]) < keep)
    x[~mask] = float(rng.choice([np.nan, np.inf, -np.inf]))
    return x, mask


@given(
    seed=st.integers(0, 2**32 - 1),
    lead=st.lists(st.integers(1, 3), max_size=2),
    n=st.integers(0, 9),
    d=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
    keep=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
)
def test_agrees_with_pairwise_reference(seed, lead, n, d, dtype, keep):
    x, mask = sequences(seed, (*lead, n, d), dtype, keep)
    results = cone_index(x, mask), cone_index(x, mask, normalized=True), mean_cosine(x, mask)
    for result in results:
        assert result.shape == tuple(lead)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for where in np.ndindex(*lead):
        expected = reference(x[where][mask[where]].double().numpy())
        got = [float(result[where]) for result in results]
        np.testing.assert_allclose(got, expected, atol=1e-12 if dtype == torch.float64 else 3e-6)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), d=st.integers(1, 32))
def test_index_and_mean_cosine_say_the_same(seed, n, d):
    x = torch.tensor(np.random.default_rng(seed).normal(0.3, 1, (2, n, d)), dtype=torch.float32)
    torch.testing.assert_close(cone_index(x).square(), n + n * (n - 1) * mean_cosine(x), rtol=1e-5, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 12), d=st.integers(2, 8))
def test_blind_to_rotation_order_and_length(seed, n, d):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(0.5, 1, (n, d)))
    rotation = torch.linalg.qr(torch.tensor(rng.normal(size=(d, d)))).Q
    lengths = torch.tensor(10.0 ** rng.uniform(-6, 6, (n, 1)))
    moved = (x * lengths)[torch.tensor(rng.permutation(n))] @ rotation
    for function in (cone_index, mean_cosine):
        torch.testing.assert_close(function(moved), function(x))


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


def test_undefined_is_nan():
    one = torch.tensor([[True, False, False], [False, False, False]])
    x = torch.ones(2, 3, 4)
    assert cone_index(x, one).isnan().tolist() == [False, True]
    assert cone_index(x, one, normalized=True).isnan().tolist() == [False, True]
    assert mean_cosine(x, one).isnan().all()
    assert mean_cosine(x[:, :1]).isnan().all()
    assert cone_index(x[:, :0]).isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_valid_token_stays_visible(bad):
    x = torch.ones(2, 3, 4)
    x[0, 1, 2] = bad
    for value in (cone_index(x), cone_index(x, normalized=True), mean_cosine(x)):
        assert value.isnan().tolist() == [True, False]


def test_ranges_are_not_left_by_rounding():
    x = torch.randn(500, 1, 17, generator=torch.Generator().manual_seed(0)).expand(500, 33, 17)
    assert (cone_index(x) / 33).max() > 1  # what the clamp is for
    assert cone_index(x, normalized=True).max() <= 1
    assert mean_cosine(x).max() <= 1
    opposite = torch.stack([x[:, 0], -x[:, 0]], dim=1)
    assert mean_cosine(opposite).min() >= -1


def test_head_outputs_share_their_sequence_mask():
    x, mask = sequences(0, (2, 3, 7, 4), torch.float32, 1.0)
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
