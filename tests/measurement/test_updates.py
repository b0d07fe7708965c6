"""Weights of two samples, and of two layers: against definitions in float64 over real parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel

from lightning_geo.measurement.collectors.updates import Draw, spread
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import select
from lightning_geo.observe import Tap
from support.lit import bert, gpt2, sequences

METRICS = select("updates")
BATCH = {name: torch.stack([item[name] for item in sequences(4)]) for name in ("input_ids", "attention_mask")}


class Samples:
    """Samples of one model, one after the other.

    Args:
        model: The model.
        blocks: Its blocks' path but for the number.
    """

    def __init__(self, model: nn.Module, blocks: str = "bert.encoder.layer") -> None:
        self.model = model.eval()
        self.blocks = blocks
        self.tap = Tap(model)
        self.drawn: dict[str, dict[str, Draw]] = {}

    def take(self, twin: nn.Module | None = None) -> dict[str, NDArray[Any]]:
        measurement = Measurement({"": self.tap}, METRICS, drawn=self.drawn)
        with measurement.observe(twin=twin), torch.no_grad():
            (self.model if twin is None else twin)(**BATCH)
        assert not measurement.failures
        [arrays] = measurement.compute().stacks.values()
        return arrays

    def weights(self, layer: int) -> list[Tensor]:
        """Whole weights of a block in float64, or of its adapters if there are any."""
        every = list(self.model.get_submodule(f"{self.blocks}.{layer}").parameters())
        trained = [p for p in every if p.requires_grad]
        return [p.detach().double().clone() for p in trained or every]


def joined(weights: list[Tensor]) -> Tensor:
    return torch.cat([w.flatten() for w in weights])


def train(model: nn.Module, rate: float, kind: Callable[..., Any] = torch.optim.AdamW) -> None:
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=rate)
    loss = model(**BATCH)[0].square().mean()
    loss.backward()
    optimizer.step()
    model.zero_grad()


def centred_cosine(ours: list[Tensor], theirs: list[Tensor]) -> float:
    one, other = (joined([w - w.mean() for w in x if w.dim() > 1]) for x in (ours, theirs))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_small_weights_are_measured_whole() -> None:
    """Every parameter here has fewer elements than are drawn, so that values are those of all weights."""
    torch.manual_seed(0)
    samples = Samples(bert(3, width=16))
    first = samples.take()
    assert set(first) == {"weight_similarity"}
    before = [samples.weights(i) for i in range(3)]
    samples.model.bert.encoder.layer[1].requires_grad_(False)
    train(samples.model, 1e-2)
    samples.model.bert.encoder.layer[1].requires_grad_(True)
    second = samples.take()
    after = [samples.weights(i) for i in range(3)]
    for layer, (was, now) in enumerate(zip(map(joined, before), map(joined, after), strict=True)):
        np.testing.assert_allclose(second["update_size"][layer], (now - was).norm() / was.norm(), rtol=1e-5)
        np.testing.assert_allclose(second["unchanged_share"][layer], (now == was).double().mean(), rtol=1e-6)
        nearest = max(centred_cosine(after[layer], x) for i, x in enumerate(after) if i != layer)
        np.testing.assert_allclose(second["weight_similarity"][layer], nearest, atol=1e-6)
    assert second["update_size"][1] == 0
    assert second["unchanged_share"][1] == 1
    assert np.isnan(second["bf16_share"][1])
    assert (second["bf16_share"][[0, 2]] < 0.01).all()
    assert (samples.take()["unchanged_share"] == 1).all()  # the sample before is the last one


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    """Parameters of more elements than are drawn."""
    torch.manual_seed(0)
    return gpt2(3, width=96, dropout=0.0)


@settings(max_examples=12, deadline=None)
@given(
    change=st.sampled_from(["none", "sgd", "adam", "bf16", "copied", "replaced", "lost", "half"]),
    twin=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_was_done_to_weights_shows(wide: nn.Module, change: str, twin: bool, seed: int) -> None:
    torch.manual_seed(seed)
    samples = Samples(copy.deepcopy(wide), "transformer.h")
    blocks = samples.model.transformer.h
    if change == "half":
        samples.model.bfloat16()
    samples.take()
    before = [joined(samples.weights(i)) for i in range(3)]
    kept = copy.deepcopy(samples.model.state_dict())
    if change in ("none", "sgd"):
        train(samples.model, 0.0, torch.optim.SGD)
    if change in ("adam", "bf16", "copied", "half"):
        train(samples.model, 1e-3)
    if change == "bf16":
        with torch.no_grad():
            for p in blocks[1].parameters():
                p.copy_(p.bfloat16())
    if change == "copied":
        blocks[2].load_state_dict(blocks[0].state_dict())
    if change == "replaced":
        blocks[1].mlp.c_fc.weight = nn.Parameter(blocks[1].mlp.c_fc.weight.detach().clone())
    if change == "lost":
        train(samples.model, 1e-3)
        samples.model.load_state_dict(kept)  # what no optimizer would do
    arrays = samples.take(copy.deepcopy(samples.model) if twin else None)
    size, same = arrays["update_size"], arrays["unchanged_share"]
    changes = [(joined(samples.weights(i)) - w).norm() / w.norm() for i, w in enumerate(before)]
    if change in ("none", "sgd", "lost"):
        assert (size == 0).all()
        assert (same == 1).all()
    elif change == "replaced":
        np.testing.assert_array_equal(np.isnan(size), [False, True, False])
        assert (samples.take()["update_size"] == 0).all()
    else:
        np.testing.assert_allclose(size, changes, rtol=0.1)
        assert (same < (0.6 if change == "half" else 0.01)).all()
    rounded = arrays["bf16_share"]
    if change == "half":
        assert np.isnan(rounded).all()
    elif change == "bf16":
        assert rounded[1] == 1
        assert (rounded[[0, 2]] < 0.01).all()
    close = arrays["weight_similarity"]
    np.testing.assert_allclose(close[[0, 2]], 1 if change == "copied" else 0, atol=0.03)
    assert abs(close[1]) < 0.03


def test_adapters_count_and_their_base_does_not() -> None:
    torch.manual_seed(0)
    model = get_peft_model(bert(2), LoraConfig(r=2, target_modules=["query", "value"]))
    samples = Samples(model, "base_model.model.bert.encoder.layer")
    samples.take()
    before = [joined(samples.weights(i)) for i in range(2)]
    train(samples.model, 1e-2)
    arrays = samples.take()
    for layer, was in enumerate(before):
        now = joined(samples.weights(layer))
        assert now.numel() == 2 * (2 * 32 + 32 * 2)
        np.testing.assert_allclose(arrays["update_size"][layer], (now - was).norm() / was.norm(), rtol=1e-5)
        assert arrays["unchanged_share"][layer] == 0


def test_shared_layers_are_no_two_layers_and_what_is_no_plain_number_is_left_out() -> None:
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=60, embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    shared = Samples(AlbertModel(config))
    assert np.isnan(shared.take()["weight_similarity"]).all()
    train(shared.model, 1e-2)
    assert len(set(shared.take()["update_size"])) == 1

    samples = Samples(bert(2))
    blocks = samples.model.bert.encoder.layer
    for parameter in blocks[0].parameters():
        parameter.ds_id = 0  # type: ignore[attr-defined]
    samples.take()
    train(samples.model, 1e-2)
    np.testing.assert_array_equal(np.isnan(samples.take()["update_size"]), [True, False])


@given(
    shape=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    limit=st.integers(1, 300),
    turned=st.booleans(),
)
def test_a_draw_is_a_view_that_reaches_all_columns(shape: list[int], limit: int, turned: bool) -> None:
    x = torch.arange(shape[-1]).expand(shape).float().contiguous()
    if turned and len(shape) > 1:
        x = x.mT.contiguous().mT
    view = spread(x, limit)
    assert view is not None
    assert len(view) <= limit
    assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    if x.is_contiguous() and len(view) >= shape[-1]:
        assert len(view.unique()) == shape[-1]
