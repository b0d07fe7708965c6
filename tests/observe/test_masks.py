"""Which entries of a mask hide, and which keys are padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_geo.observe.evidence.masks import MaskReader, keys_seen, with_hidden

N = 8


@given(
    value=st.sampled_from([-50.0, -100.0, -1e3, -1e4, -65504.0, torch.finfo(torch.float32).min, -torch.inf]),
    width=st.floats(0, 10),
    seed=st.integers(0, 99),
)
def test_a_constant_that_is_set_apart_hides(value: float, width: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(2, 1, N, N, generator=generator) < 0.4
    bias = (torch.rand(2, 1, N, N, generator=generator) - 0.5) * width
    mask = (torch.zeros(2, 1, N, N).masked_fill(hidden, value) + bias).clamp(
        min=torch.finfo(torch.float32).min
    )
    result = with_hidden(mask)
    assert (result == -torch.inf).equal(hidden)
    assert result[~hidden].equal(mask[~hidden])


@given(slope=st.floats(0.01, 200), keys=st.integers(3, 40))
def test_a_bias_that_grows_with_distance_hides_nothing(slope: float, keys: int) -> None:
    distance = (torch.arange(keys)[:, None] - torch.arange(keys)).abs()
    bias = (-slope * distance.float())[None, None].clamp(min=-8000)
    assert with_hidden(bias).equal(bias)


def test_a_constant_hides_beside_a_bias_that_grows() -> None:
    distance = (torch.arange(N)[:, None] - torch.arange(N)).abs().float()
    hidden = torch.arange(N) >= 6
    assert (with_hidden(-distance + torch.where(hidden, -1000.0, 0.0)) == -torch.inf).equal(
        hidden.expand(N, N)
    )


def test_nan_is_kept_and_hides_nothing() -> None:
    mask = torch.tensor([0.0, torch.nan, -100.0])
    result = with_hidden(mask)
    assert result[1].isnan()
    assert result[1] != -torch.inf


def square(*rows: Tensor) -> Tensor:
    return torch.stack(rows)[:, None]


LENGTHS = st.lists(st.integers(2, N), min_size=1, max_size=3)
TRIANGLE = torch.ones(N, N, dtype=torch.bool).tril()
EYE = torch.eye(N, dtype=torch.bool)


@given(
    lengths=LENGTHS, left=st.booleans(), causal=st.booleans(), itself=st.booleans(), both=st.booleans(),
    bias=st.booleans(),
)  # fmt: skip
def test_padding_is_what_no_other_query_sees(
    lengths: list[int], left: bool, causal: bool, itself: bool, both: bool, bias: bool
) -> None:
    real = torch.stack([torch.arange(N) >= N - n if left else torch.arange(N) < n for n in lengths])
    mask = real[:, None, None, :].expand(-1, 1, N, N)
    if causal:
        mask = mask & TRIANGLE
    if both:
        mask = mask & real[:, None, :, None]
    if itself:
        mask = mask | EYE
    if causal and itself and not both:  # one padded token at the end is no other than a last token
        real[:, -1] |= torch.tensor([n == N - 1 for n in lengths]) & torch.tensor(not left)
    if itself and (both or (left and causal)) and min(lengths) >= N - 1:  # nor is one that is alone
        real[:] = True
    given_mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if bias else mask
    assert keys_seen(given_mask, N, N).expand(len(lengths), N).equal(real)


@given(seed=st.integers(0, 999))
def test_sparse_rows_need_not_see_themselves(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(N, N, generator=generator) < 0.3
    seen[torch.arange(N), (torch.arange(N) + 1) % N] = True  # each key is seen by one other query at least
    seen &= ~EYE
    assert keys_seen(seen[None, None], N, N).all()


@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.sampled_from([0, 2, 3]))
def test_documents_are_tokens_and_padding_behind_them_is_not(sizes: list[int], padding: int) -> None:
    sizes[0], sizes[-1] = max(sizes[0], 2), max(sizes[-1], 2)  # one token at an end looks like padding
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)] + [torch.full((padding,), -1)])
    mask = (numbers[:, None] == numbers) & (numbers >= 0) | torch.eye(len(numbers), dtype=torch.bool)
    assert keys_seen(mask[None, None], len(numbers), len(numbers))[0].equal(numbers >= 0)


def test_keys_in_front_are_seen_by_all() -> None:
    mask = torch.ones(N, N + 3, dtype=torch.bool).tril(3)
    mask[:, 3 + 6 :] = False  # the last two of the queries' own are padding
    mask[torch.arange(N), torch.arange(N) + 3] = True
    assert keys_seen(mask[None, None], N, N + 3, front=3)[0].equal(torch.arange(N + 3) < 9)


def test_long_masks_are_read_in_parts() -> None:
    length = 1500
    real = torch.arange(length) < 1400
    mask = (real & torch.ones(length, length, dtype=torch.bool).tril()) | torch.eye(length, dtype=torch.bool)
    assert keys_seen(mask[None, None], length, length)[0].equal(real)


@pytest.mark.parametrize("change", [False, True])
def test_a_mask_is_read_once_until_it_changes(change: bool) -> None:
    reader, mask, calls = MaskReader(), torch.zeros(1, 1, N, N), []
    for _ in range(3):
        reader.once("x", mask, lambda m: calls.append(m))
        if change:
            mask.add_(1)
    assert len(calls) == (3 if change else 1)


def test_one_token_alone_at_an_end_is_a_token_unless_other_rows_show_padding_there() -> None:
    alone = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    more = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3])
    masks = [(numbers[:, None] == numbers) for numbers in (alone, more)]
    assert keys_seen(square(masks[0]), N, N).all()
    assert keys_seen(square(*masks), N, N).equal(torch.stack([alone, more]) == 0)
