"""``flex_attention`` called by the model itself: values, every form of mask, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as library
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lightning_geo import measure
from lightning_geo.heads import scaled_heads
from lightning_geo.replay import undisturbed
from lightning_geo.taps import Tap
from same import traces

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
NAMES = ("setup_compilation_env", "_set_compilation_env", "flex_attention_hop", "flex_attention")
ORIGINALS = {name: getattr(library, name, None) for name in NAMES}


class Block(nn.Module):
    """Attention whose inner function is given: 4 heads of 8, ``shared`` of them for keys and values."""

    def __init__(self, attend: Attend, shared: int = 4) -> None:
        super().__init__()
        self.q, self.kv, self.attend, self.num_heads = nn.Linear(32, 32), nn.Linear(32, 16 * shared), attend, 4
        with torch.no_grad():
            self.q.weight.mul_(4)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, -1, 8)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attend(*self.project(x)).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, *attends: Attend, shared: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block(attend, shared) for attend in attends)
        self.requires_grad_(False)  # on the CPU, flex attention refuses to be differentiated

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    assert {name: getattr(library, name, None) for name in NAMES} == ORIGINALS
    assert traces(nn.Module()) == []


def probabilities(block: nn.Module, x: Tensor, visible: Tensor | None = None, scale: float = 8**-0.5) -> Tensor:
    """Of one block, in float64."""
    assert isinstance(block, Block)
    with torch.no_grad():
        q, k, _ = (part.double() for part in block.project(x))
    scores = q @ k.repeat_interleave(4 // k.shape[1], 1).transpose(-1, -2) * scale
    return (scores if visible is None else scores.masked_fill(~visible, -torch.inf)).softmax(-1)


def entropy(p: Tensor) -> np.ndarray[Any, Any]:
    """[H], over all rows."""
    return torch.special.entr(p).sum(-1).mean((0, 2)).numpy()


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flex_attention(q, k, v)


def test_entropy_is_that_of_the_model(x: Tensor) -> None:
    model = Model(plain, plain)
    record = measure(model, x, metrics=["entropy", "cone"])
    first = model.layers[0](x).detach()
    np.testing.assert_allclose(record["entropy"][0], entropy(probabilities(model.layers[0], x)), atol=1e-5)
    np.testing.assert_allclose(record["entropy"][1], entropy(probabilities(model.layers[1], first)), atol=1e-5)
    _, _, v = model.layers[0].project(x)
    output = F.normalize(probabilities(model.layers[0], x) @ v.detach().double(), dim=-1)
    cone = output.mean(2).norm(dim=-1).mean(0).numpy()
    np.testing.assert_allclose(record["cone.head"][0], cone, atol=1e-5)


def test_every_layer_is_there_where_only_one_calls_it(x: Tensor) -> None:
    model = Model(plain, F.scaled_dot_product_attention, plain)
    record = measure(model, x, metrics=["entropy"])
    inputs = x
    for layer, found in zip(model.layers, record["entropy"], strict=True):
        np.testing.assert_allclose(found, entropy(probabilities(layer, inputs)), atol=1e-5)
        inputs = layer(inputs).detach()


def test_grouped_heads_and_scale(x: Tensor) -> None:
    model = Model(lambda q, k, v: flex_attention(q, k, v, scale=0.2, enable_gqa=True), shared=2)
    found = measure(model, x, metrics=["entropy"])["entropy"][0]
    np.testing.assert_allclose(found, entropy(probabilities(model.layers[0], x, scale=0.2)), atol=1e-5)


def test_block_mask(x: Tensor) -> None:
    mask = create_block_mask(lambda b, h, q, k: k <= q, None, None, 12, 12, device="cpu")
    model = Model(lambda q, k, v: flex_attention(q, k, v, block_mask=mask))
    record = measure(model, x, metrics=["entropy", "pattern"])
    p = probabilities(model.layers[0], x, torch.ones(12, 12, dtype=torch.bool).tril())
    np.testing.assert_allclose(record["entropy"][0], entropy(p), atol=1e-5)
    np.testing.assert_allclose(record["forward_mass"][0], 0.0, atol=1e-6)


def test_block_mask_by_head_and_sequence(x: Tensor) -> None:
    mask = create_block_mask(lambda b, h, q, k: (k + b + h) % 3 > 0, 3, 4, 12, 12, device="cpu")
    model = Model(lambda q, k, v: flex_attention(q, k, v, block_mask=mask))
    b, h, k = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(12), indexing="ij")
    p = probabilities(model.layers[0], x, ((k + b + h) % 3 > 0)[:, :, None])
    statistics = measure(model, x, metrics=["concentration"])
    rows = torch.ones(3, 12, dtype=torch.bool)
    for sequence in range(3):  # a token that no head sees is no token
        seen = ((torch.arange(12) + sequence)[:, None] + torch.arange(4)) % 3 > 0
        rows[sequence] = seen.any(1)
    assert rows.all()
    np.testing.assert_allclose(statistics["concentration"][0], p.square().sum(-1).mean((0, 2)), atol=1e-5)


def sparse() -> BlockMask:
    """Two blocks of 8: the first queries see the first keys only, by that alone."""
    count, index = torch.tensor([[[1, 2]]]), torch.tensor([[[[0, 1], [0, 1]]]])
    return BlockMask.from_kv_blocks(count.int(), index.int(), BLOCK_SIZE=8, seq_lengths=(16, 16))


@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_hide_keys_where_it_is_compiled(compiled: bool) -> None:
    """Eager flex attention looks at ``mask_mod`` alone, compiled one skips blocks: each is shown as it is."""
    x, mask = torch.randn(2, 16, 32), sparse()
    function = torch.compile(flex_attention) if compiled else flex_attention
    model = Model(lambda q, k, v: function(q, k, v, block_mask=mask))
    visible = torch.ones(16, 16, dtype=torch.bool)
    visible[:8, 8:] = not compiled
    record = measure(model, x, metrics=["entropy", "cone"])
    p = probabilities(model.layers[0], x, visible)
    np.testing.assert_allclose(record["entropy"][0], entropy(p), atol=1e-5)
    output = F.normalize(p @ model.layers[0].project(x)[2].detach().double(), dim=-1)
    np.testing.assert_allclose(record["cone.head"][0], output.mean(2).norm(dim=-1).mean(0), atol=1e-5)


def test_compiled_function(x: Tensor) -> None:
    compiled = torch.compile(flex_attention)
    model = Model(lambda q, k, v: compiled(q, k, v))
    found = measure(model, x, metrics=["entropy"])["entropy"][0]
    np.testing.assert_allclose(found, entropy(probabilities(model.layers[0], x)), atol=1e-5)


def test_score_mod_is_left_out_and_said(x: Tensor) -> None:
    model = Model(lambda q, k, v: flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s - i), plain)
    tap = Tap(model)
    measured = measure(model, x, metrics=["entropy"])["entropy"]
    with undisturbed(model), scaled_heads(tap, lambda key, call: None):
        first = model.layers[0](x)
        model(x)
    expected = entropy(probabilities(model.layers[1], first))
    np.testing.assert_allclose(measured[-1], expected, atol=1e-5)
    assert np.isnan(measured[:-1]).all()
    (reason,), (modules,) = zip(*tap.coverage.left_out.items(), strict=True)
    assert "score_mod" in reason
    assert modules == ["layers.0"]


def test_heads_are_scaled(x: Tensor) -> None:
    model = Model(plain)
    factor = torch.tensor([[1.0, 0.0, 0.5, 1.0]])
    with undisturbed(model), scaled_heads(Tap(model), lambda key, call: factor):
        scaled = model(x)
    _, _, v = model.layers[0].project(x)
    output = probabilities(model.layers[0], x) @ v.double() * factor[..., None, None]
    torch.testing.assert_close(scaled, x + output.transpose(1, 2).flatten(2).float(), atol=1e-5, rtol=0)


class Shown:
    """An observer that keeps what it is shown."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def attention(self, key: Any, call: Any) -> None:
        self.outputs.append(call.output.clone())

    def attention_module(self, *_: Any) -> None: ...

    def block(self, *_: Any) -> None: ...


def test_outside_of_a_replay_nothing_but_looking(x: Tensor) -> None:
    model, shown = Model(plain, plain), Shown()
    tap = Tap(model)
    with torch.no_grad():
        alone = model(x)
        with tap.open(shown):
            watched = model(x)
    assert tap.failures == []
    assert len(shown.outputs) == 2
    assert torch.equal(alone, watched)
    with torch.no_grad():
        first = shown.outputs[0].transpose(1, 2).flatten(2)
        assert torch.equal(model.layers[0](x), x + first)


@pytest.mark.parametrize("replay", [False, True])
def test_an_error_of_the_function_reaches_the_model(x: Tensor, replay: bool) -> None:
    def fail(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        raise ArithmeticError("mask")

    mask = create_block_mask(lambda b, h, q, k: k <= q, None, None, 12, 12, device="cpu")
    mask.mask_mod = fail
    model, shown = Model(lambda q, k, v: flex_attention(q, k, v, block_mask=mask)), Shown()
    with torch.no_grad(), pytest.raises(Exception, match="mask"):
        if replay:
            with undisturbed(model), Tap(model).open(shown):
                model(x)
        else:
            with Tap(model).open(shown):
                model(x)
    assert shown.outputs == []
