"""Importance against full autograd through the weights of the output projection, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate

from families.models import FAMILIES
from families.packaged import PACKAGED
from lightning_geo import measure
from lightning_geo.measurement.importance import NoLossError
from lightning_geo.observe import Tap
from lightning_geo.observe.heads.head_factors import HeadFactors, scaled_heads
from support.lit import bert, sequences
from support.losses import spread
from support.projections import CASES, HEADS, PROJECTIONS, by_head, weight_of
from support.same import traces


def expected(model: nn.Module, batch: dict[str, Tensor], path: str, layer: int, heads: int = HEADS) -> Tensor:
    """[H]: to scale a head's output is to scale the weights that read it, ⟨o, ∂L/∂o⟩ = ⟨W_O, ∂L/∂W_O⟩."""
    found = []
    rows = len(next(iter(batch.values())))
    for row in range(rows):
        model.zero_grad()
        one = {k: v[row : row + 1] for k, v in batch.items()}
        spread(model(**one)).backward()
        weight = weight_of(model, path, layer)
        assert weight.grad is not None
        found.append(by_head(model, path, layer, (weight * weight.grad).detach(), heads).sum((1, 2)).abs())
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_full_autograd_gives_the_same(name: str, implementation: str) -> None:
    family = FAMILIES[name]
    batch = family.batch(family.paddings[-1])
    record = measure(family.build(implementation), batch, metrics="importance", loss_fn=spread)
    assert set(record.stacks) == {stack for stack, _ in PROJECTIONS[name]}
    for stack, path in PROJECTIONS[name]:
        for layer in range(2):
            theirs = expected(family.build(implementation), batch, path, layer)
            ours = record.stacks[stack]["importance"][layer]
            assert ours.shape == (HEADS,)
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6 * float(theirs.max()))


def test_full_autograd_gives_the_same_on_the_packaged_bert() -> None:
    batch = PACKAGED.batch("right")
    ours = measure(PACKAGED.build("sdpa"), batch, metrics="importance", loss_fn=spread)["importance"]
    assert ours.shape == (6, 12)
    model = PACKAGED.build("eager").double()
    for layer in range(6):
        theirs = expected(model, batch, "encoder.layer.*.attention.output.dense", layer, heads=12)
        np.testing.assert_allclose(ours[layer], theirs, rtol=1e-4)


@pytest.mark.parametrize("norm_first", [True, False])
def test_multi_head_attention_too(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(1, 7, 16)
    padding = torch.arange(7)[None] > 4
    call = {"src": x, "src_key_padding_mask": padding}
    ours = measure(model, call, metrics="importance", loss_fn=spread)["importance"]
    model.eval()
    spread(model(**call)).backward()
    for index, block in enumerate(model.layers):
        weight = block.self_attn.out_proj.weight
        theirs = (weight * weight.grad).detach().unflatten(1, (4, 4)).sum((0, 2)).abs()
        np.testing.assert_allclose(ours[index], theirs, rtol=2e-5, atol=1e-6 * float(theirs.max()))


def test_finite_differences_give_the_same() -> None:
    torch.manual_seed(0)
    model = bert(dropout=0.0).double().eval()
    batch = default_collate(sequences(1))
    ours = measure(model, batch, metrics="importance")["importance"]
    with torch.no_grad():
        for layer, head in np.ndindex(2, 4):
            columns = model.bert.encoder.layer[layer].attention.output.dense.weight[
                :, 8 * head : 8 * head + 8
            ]
            losses = []
            for change in (1e-4, -1e-4):
                before = columns.clone()
                columns.mul_(1 + change)
                losses.append(float(model(**batch).loss))
                columns.copy_(before)
            assert ours[layer, head] == pytest.approx(abs(losses[0] - losses[1]) / 2e-4, rel=1e-4)


def test_the_batch_that_a_sequence_came_in_makes_no_difference() -> None:
    torch.manual_seed(0)
    model, batch = bert(dropout=0.0), default_collate(sequences(5))
    together = measure(model, batch, metrics="importance")["importance"]
    alone = [
        measure(model, {k: v[i : i + 1] for k, v in batch.items()}, metrics="importance")["importance"]
        for i in range(5)
    ]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_as_it_was(frozen: bool, mode: Any) -> None:
    torch.manual_seed(0)
    model, batch = bert(), default_collate(sequences(3))
    expected = measure(model, batch, metrics="importance")["importance"]
    model.requires_grad_(not frozen)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    heard: list[str] = []
    layer = model.bert.encoder.layer[0]
    handles = [
        layer.register_full_backward_hook(lambda *_: heard.append("module")),
        layer.register_full_backward_pre_hook(lambda *_: heard.append("before")),
    ]
    if not frozen:
        handles += [p.register_hook(lambda *_: heard.append("gradient")) for p in model.parameters()]
        handles += [
            p.register_post_accumulate_grad_hook(lambda *_: heard.append("p")) for p in model.parameters()
        ]
    before, random = traces(model), torch.get_rng_state()
    with mode():
        ours = measure(model, batch, metrics="importance")["importance"]
    np.testing.assert_array_equal(ours, expected)
    assert heard == []
    assert model.training
    assert traces(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    for parameter in model.parameters():
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
        assert parameter.requires_grad is not frozen
    for handle in handles:
        handle.remove()
    assert model(**batch).loss.requires_grad is not frozen


class Checkpointed(nn.Module):
    """Checkpoints its model in eval mode too."""

    def __init__(self, model: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, **batch: Tensor) -> Any:
        hidden = self.model.bert.embeddings(batch["input_ids"])
        for layer in self.model.bert.encoder.layer:
            hidden = checkpoint(layer, hidden, use_reentrant=self.reentrant)
        logits = self.model.classifier(hidden[:, 0])
        return {"loss": nn.functional.cross_entropy(logits, batch["labels"])}


def test_recomputed_layers_give_the_same() -> None:
    torch.manual_seed(0)
    model, batch = bert(dropout=0.0), default_collate(sequences(2))

    class Plain(Checkpointed):
        def forward(self, **given: Tensor) -> Any:
            hidden = self.model.bert.embeddings(given["input_ids"])
            for layer in self.model.bert.encoder.layer:
                hidden = layer(hidden)
            logits = self.model.classifier(hidden[:, 0])
            return {"loss": nn.functional.cross_entropy(logits, given["labels"])}

    ours = measure(Checkpointed(model, reentrant=False), batch, metrics="importance")["importance"]
    theirs = measure(Plain(model, reentrant=False), batch, metrics="importance")["importance"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_reentrant_recomputation_gives_no_number() -> None:
    torch.manual_seed(0)
    model = Checkpointed(bert(dropout=0.0), reentrant=True)
    record = measure(model, default_collate(sequences(2)), metrics=["importance", "metric:entropy"])
    assert "importance" not in record


def test_without_a_loss_it_says_what_to_do() -> None:
    batch = default_collate(sequences(2))
    del batch["labels"]
    with pytest.raises(NoLossError, match=r"`labels`\); pass them, or give `loss_fn=`"):
        measure(bert(), batch, metrics="importance")
    with pytest.raises(TypeError, match=r"tensor of one number but got one of shape \[1, 2\]"):
        measure(bert(), batch, metrics="importance", loss_fn=lambda output, **_: output.logits)
    with pytest.raises(ValueError, match="constant to autograd"):
        measure(bert(), batch, metrics="importance", loss_fn=lambda output, **_: output.logits.detach().sum())


def test_it_has_to_be_asked_for() -> None:
    batch = default_collate(sequences(2))
    assert "importance" not in measure(bert(), batch)
    assert "importance" in measure(bert(), batch, metrics=["importance", "stream"])


# -- factors


def test_factors_of_one_change_nothing_and_others_do() -> None:
    torch.manual_seed(0)
    model, batch = bert(dropout=0.0).eval(), default_collate(sequences(3))
    whole = model(**batch).logits
    with scaled_heads(Tap(model), HeadFactors()):
        assert torch.equal(model(**batch).logits, whole)
    with scaled_heads(Tap(model), lambda key, call: torch.zeros(1, 4)):
        assert not torch.allclose(model(**batch).logits, whole)
    assert torch.equal(model(**batch).logits, whole)
    assert traces(model) == []


def test_a_factor_of_another_shape_is_an_error() -> None:
    model, batch = bert().eval(), default_collate(sequences(3))
    with (
        pytest.raises(ValueError, match=r"layer.0.attention.self' to be \[3 or 1, 4\] but got \[1, 5\]"),
        scaled_heads(Tap(model), lambda key, call: torch.zeros(1, 5)),
    ):
        model(**batch)
