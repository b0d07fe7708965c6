"""The tap on models of one's own: what they catch, what they hide, how their forward is set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo import measure
from lightning_geo.observe import Tap
from support.lit import bert
from support.notes import Notes
from support.same import traces


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return bert(dropout=0.0)


@pytest.fixture(autouse=True)
def _clean(model: nn.Module) -> Iterator[None]:
    yield
    assert traces(model) == []


class Guarded(nn.Module):
    """Catches what its attention raises."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([inner, inner])

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.layers[0](x)  # type: ignore[no-any-return]
        except RuntimeError:
            return F.scaled_dot_product_attention(x, x, x)


class Sdpa(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 3:
            raise RuntimeError("an odd size")
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(("size", "seen"), [(4, "layers.0#0"), (3, "#0")])
def test_a_model_that_catches_its_own_errors(size: int, seen: str) -> None:
    notes, tap = Notes(), Tap(Guarded(Sdpa()))
    with tap.open(notes):
        tap.modules[""](torch.ones(1, 2, 5, size))
    assert [note for note in notes.seen if "#" in note] == [seen]
    assert tap.failures == []


class OtherAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@pytest.mark.parametrize("build", [OtherAttention, nn.ReLU])
def test_what_looks_like_attention_and_shows_none_is_told(build: Callable[[], nn.Module]) -> None:
    tap = Tap(nn.Sequential(build()))
    with tap.open(Notes()):
        tap.modules[""](torch.ones(1, 2, 3))
    assert tap.unobserved == ({"0": "OtherAttention"} if build is OtherAttention else {})


class Layer(nn.Module):
    """One attention with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Encoder(nn.Module):
    """Two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Bare(nn.Module):
    """Another's modules under a ``forward`` of the instance, as code that assembles models sets it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(model.__dict__)
        self.forward = functools.partial(type(model).forward, self)


def test_a_forward_that_is_set_on_the_instance_is_observed_as_one_of_the_class() -> None:
    encoder = Encoder()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    expected = measure(encoder, x)
    encoder.layers = nn.ModuleList(Bare(layer) for layer in encoder.layers)
    record = measure(Bare(encoder), x)
    assert record.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(record[name], expected[name])
