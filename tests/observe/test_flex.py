"""``flex_attention`` called by the model itself: values, every form of mask, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as library
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lightning_geo import measure
from lightning_geo.observe import Tap
from lightning_geo.observe.attention import fused_flex
from lightning_geo.observe.heads.head_factors import scaled_heads
from lightning_geo.observe.replay.undisturbed_run import undisturbed
from support.flexible import Model, entropy, plain, probabilities
from support.same import traces

NAMES = ("setup_compilation_env", "_set_compilation_env", "flex_attention_hop", "flex_attention")
ORIGINALS = {name: getattr(library, name, None) for name in NAMES}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    assert {name: getattr(library, name, None) for name in NAMES} == ORIGINALS
    assert traces(nn.Module()) == []


def test_entropy_is_that_of_the_model(x: Tensor) -> None:
    model = Model(plain, plain)
    record = measure(model, x, metrics=["entropy", "cone"])
    first = model.layers[0](x).detach()
    np.testing.assert_allclose(record["entropy"][0], entropy(probabilities(model.layers[0], x)), atol=1e-5)
    np.testing.assert_allclose(
        record["entropy"][1], entropy(probabilities(model.layers[1], first)), atol=1e-5
    )
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


@pytest.mark.parametrize("fails", [False, True])
def test_a_compiled_function_may_be_computed_by_a_kernel(
    x: Tensor, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; where the kernel cannot be made, eagerly."""
    mask = create_block_mask(lambda b, h, q, k: k <= q, None, None, 12, 12, device="cpu")
    compiled, used, compile_ = torch.compile(flex_attention), [], torch.compile

    def kernel(function: Any, **options: Any) -> Any:
        if options:  # flex attention itself compiles too
            return compile_(function, **options)

        def attend(*args: Any) -> Tensor:
            used.append(len(args))
            if fails:
                raise RuntimeError("no compiler")
            return made(*args)  # type: ignore[no-any-return]

        made = compile_(function, backend="eager")
        return attend

    monkeypatch.setattr(fused_flex, "_DEVICES", ("cpu",))
    monkeypatch.setattr(torch, "compile", kernel)
    fused_flex._compiled.cache_clear()
    options = {"BLOCK_M": 32}
    model = Model(lambda q, k, v: compiled(q, k, v, block_mask=mask, scale=0.3, kernel_options=options))
    record = measure(model, x, metrics=["entropy", "cone"])
    fused_flex._compiled.cache_clear()
    assert len(used) == 1
    p = probabilities(model.layers[0], x, torch.ones(12, 12, dtype=torch.bool).tril(), 0.3)
    np.testing.assert_allclose(record["entropy"][0], entropy(p), atol=1e-5)
    output = F.normalize(p @ model.layers[0].project(x)[2].double(), dim=-1)
    np.testing.assert_allclose(record["cone.head"][0], output.mean(2).norm(dim=-1).mean(0), atol=1e-5)


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
    with (
        pytest.raises(ArithmeticError, match="mask")
        if replay
        else pytest.raises(Exception, match=r"mask|Observed exception"),
        undisturbed(model) if replay else torch.no_grad(),
        Tap(model).open(shown),
    ):
        model(x)
    assert shown.outputs == []
