"""Where a tensor's tokens come from, followed through the functions that a model calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_geo.observe.evidence.origins import Origins


class Following(TorchFunctionMode):
    """Shows every function to ``origins``."""

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self.origins = origins

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.origins.follow(func, args, kwargs or {}, result)
        return result


@pytest.fixture
def origins() -> Origins:
    return Origins()


def given(origins: Origins, *shape: int) -> Tensor:
    x = torch.randn(*shape)
    origins.give([x])
    return x


def same(origins: Origins, query: Tensor, key: Tensor) -> bool | None:
    one, other = origins.of(query), origins.of(key)
    return None if one is None or other is None else one.same_sequence(other)


WEIGHT = nn.Parameter(torch.randn(8, 8))
POSITIONS = nn.Parameter(torch.randn(1, 5, 8))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: F.linear(x, WEIGHT),
        lambda x: F.layer_norm(x, (8,)),
        lambda x: POSITIONS + x,
        lambda x: x.view(2, 5, 2, 4).transpose(1, 2),
        lambda x: torch.cat([POSITIONS[:, :1].expand(2, -1, -1), x], 1),
        lambda x: torch.cat([-x[..., 4:], x[..., :4]], -1),
        lambda x: x @ WEIGHT,
        lambda x: x.chunk(2, -1)[1],
        lambda x: torch.zeros(2, 5, 8) + x,
        lambda x: x.clone().mul_(2),
    ],
)
def test_what_is_computed_from_a_sequence_is_of_that_sequence(origins: Origins, change: Any) -> None:
    x, other = given(origins, 2, 5, 8), given(origins, 2, 5, 8)
    with Following(origins):
        y = change(x)
    assert same(origins, x, y)
    assert same(origins, other, y) is False


def test_an_embedding_is_of_its_ids(origins: Origins) -> None:
    ids = torch.randint(0, 8, (2, 5))
    origins.give([ids])
    with Following(origins):
        assert same(origins, ids, F.embedding(ids, WEIGHT))


def test_an_encoders_output_is_not_the_decoders_sequence_though_both_read_the_same(origins: Origins) -> None:
    x = given(origins, 2, 5, 8)
    with Following(origins):
        memory, state = x * 1, x * 1
        encoded = memory * 2
        origins.attended(memory, encoded)
        memory = memory + encoded
        assert same(origins, state, memory) is False
        assert same(origins, memory, memory * 2)
        own = state * 2
        origins.attended(state, own)
        assert same(origins, state + own, memory) is False


def test_keys_of_an_earlier_layer_are_of_the_same_sequence(origins: Origins) -> None:
    x = given(origins, 2, 5, 8)
    with Following(origins):
        early = x * 1
        attended = x * 2
        origins.attended(x, attended)
        assert same(origins, x + attended, early)


def test_what_stands_in_front_is_counted(origins: Origins) -> None:
    x = given(origins, 2, 5, 8)
    with Following(origins):
        key = torch.cat([torch.zeros(2, 3, 8), F.linear(x, WEIGHT)], dim=1)
        key = key.view(2, 8, 2, 4).transpose(1, 2)
    query, origin = origins.of(x), origins.of(key)
    assert query is not None
    assert origin is not None
    assert query.same_sequence(origin)
    assert origin.front - query.front == 3


def test_ids_that_are_shifted_to_the_right_are_a_sequence_of_their_own(origins: Origins) -> None:
    ids = torch.randint(0, 8, (2, 5))
    origins.give([ids])
    with Following(origins):
        shifted = ids.new_zeros(ids.shape)
        shifted[:, 1:] = ids[:, :-1]
    assert same(origins, ids, shifted) is False


def test_latents_are_their_own_sequence_until_they_meet_an_input(origins: Origins) -> None:
    x = given(origins, 2, 5, 8)
    with Following(origins):
        latents = POSITIONS.expand(2, -1, -1)
        assert same(origins, latents, latents * 2)
        assert same(origins, latents, x) is False
        assert same(origins, latents, torch.cat([x, latents], 1)) is False


def test_nothing_is_known_of_what_was_made_out_of_sight(origins: Origins) -> None:
    assert origins.of(torch.zeros(2)) is None
    with Following(origins):
        assert origins.of(torch.zeros(2) * 1) is not None
    hidden = torch.zeros(2)
    with Following(origins):
        assert origins.of(hidden * 2) is None


def test_it_keeps_no_tensor_alive(origins: Origins) -> None:
    import gc
    import weakref

    x = given(origins, 2, 5, 8)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None
