"""Heads silenced and removed, against zeroed columns of the output projection."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families.models import FAMILIES
from lightning_geo import PruningPlan, apply_plan, evaluate_plan
from lightning_geo.analysis.pruning import Head, RankedHead
from lightning_geo.interventions.ablation import Silencer
from lightning_geo.observe.replay.undisturbed_run import Call, undisturbed
from support.lit import Classifier, bert, loader
from support.projections import CASES, PROJECTIONS, by_head, weight_of
from support.same import traces


def first(output: Any) -> Tensor:
    values = output.values() if hasattr(output, "values") else vars(output).values()
    return next(x for x in values if isinstance(x, Tensor))


def plan_of(heads: list[Head], structure: dict[str, list[int]], count: int) -> PruningPlan:
    ranking = [RankedHead(head, i, float("nan"), None, i, "") for i, head in enumerate(heads)]
    return PruningPlan(tuple(ranking), count, 0, False, structure)


def some(structure: dict[str, list[int]]) -> list[Head]:
    """Two of four in every layer but the first, which loses all."""
    return [
        Head(stack, layer, head)
        for stack, layers in structure.items()
        for layer, count in enumerate(layers)
        for head in range(count)
        if layer == 0 or head in (0, 2)
    ]


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_a_silenced_head_is_zeroed_columns(name: str, implementation: str) -> None:
    family = FAMILIES[name]
    batch = family.batch(family.paddings[0])
    model, other = family.build(implementation), family.build(implementation)
    silencer = Silencer(model, Call.from_batch(batch))
    assert silencer.structure == {stack: [4, 4] for stack, _ in PROJECTIONS[name]}
    heads = some(silencer.structure)
    with torch.no_grad():
        for stack, path in PROJECTIONS[name]:
            for head in heads:
                if head.stack == stack:
                    weight = weight_of(other, path, head.layer)
                    by_head(other, path, head.layer, weight.data)[head.head] = 0.0
        expected, whole = first(other(**batch)), first(model(**batch))
        with silencer.silenced(heads):
            got = first(model(**batch))
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * scale)
    assert not torch.allclose(got, whole, rtol=1e-2, atol=1e-2 * scale)
    with torch.no_grad():
        assert torch.equal(first(model(**batch)), whole)
    assert traces(model) == []


@pytest.mark.parametrize("name", [name for name in PROJECTIONS if name != "handwritten"])
def test_a_plan_applied_is_the_plan_silenced(name: str) -> None:
    family = FAMILIES[name]
    batch, model = family.batch("none"), family.build(family.implementations[0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    silencer = Silencer(model, Call.from_batch(batch))
    heads = some(silencer.structure)
    plan = plan_of(heads, silencer.structure, len(heads))
    with undisturbed(model), silencer.silenced(heads):
        expected = first(model(**batch))
    zeroed = apply_plan(model, plan, batch, repeats=1)
    assert zeroed.parameters[0] == zeroed.parameters[1]
    with torch.no_grad():
        torch.testing.assert_close(first(zeroed.model(**batch)), expected, rtol=1e-4, atol=1e-4)
    for stack, path in PROJECTIONS[name]:
        for head in (head for head in heads if head.stack == stack):
            weight = weight_of(zeroed.model, path, head.layer)
            assert not by_head(zeroed.model, path, head.layer, weight)[head.head].any()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


#: Parameters that go with a head of width 8 in a model of width 32, biases included.
HEAD_SIZE = 4 * 32 * 8


@pytest.mark.parametrize(("name", "biases"), [("bert", 24), ("distilbert", 24), ("vit", 24), ("bart", 24)])
def test_a_smaller_model_computes_the_same(name: str, biases: int) -> None:
    family = FAMILIES[name]
    batch, model = family.batch("none"), family.build("sdpa")
    silencer = Silencer(model, Call.from_batch(batch))
    heads = some(silencer.structure)
    stacks = len(silencer.structure)
    pruned = apply_plan(model, plan_of(heads, silencer.structure, len(heads)), batch, shrink=True, repeats=1)
    # a layer without heads keeps a silent one: 3 + 2 heads go
    assert pruned.parameters[0] - pruned.parameters[1] == stacks * 5 * (HEAD_SIZE + biases)
    with torch.no_grad(), silencer.silenced(heads):
        expected = first(model(**batch))
    with torch.no_grad():
        torch.testing.assert_close(first(pruned.model(**batch)), expected, rtol=1e-4, atol=1e-4)
    assert f"{len(heads)} heads removed" in str(pruned)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "GPT2Attention has none that can be cut"),  # one projection makes all three
        ("llama", "LlamaAttention has none that can be cut"),  # two heads share a key
        ("t5", "T5Model fails to run without them"),  # its position bias has four heads
    ],
)
def test_where_a_family_does_not_allow_it_is_said(name: str, message: str) -> None:
    family = FAMILIES[name]
    batch, model = family.batch("none"), family.build("eager")
    silencer = Silencer(model, Call.from_batch(batch))
    plan = plan_of(some(silencer.structure), silencer.structure, 2)
    with pytest.raises(ValueError, match=message):
        apply_plan(model, plan, batch, shrink=True)


def test_layers_that_share_weights_cannot_lose_heads_apart() -> None:
    family = FAMILIES["albert"]
    batch, model = family.batch("none"), family.build("sdpa")
    silencer = Silencer(model, Call.from_batch(batch))
    heads = [Head("encoder", layer, 0) for layer in range(2)]
    with pytest.raises(ValueError, match="AlbertModel shares weights between layers"):
        apply_plan(model, plan_of(heads, silencer.structure, 2), batch)
    with silencer.silenced(heads):  # silenced they can
        model(**batch)


def test_a_plan_for_another_model() -> None:
    batches = loader(4)
    plan = plan_of([Head("bert.encoder", 2, 0)], {"bert.encoder": [4, 4, 4]}, 1)
    with pytest.raises(ValueError, match=r"plan has \{'bert.encoder': \[4, 4, 4\]\}, the model \{.*\[4, 4\]"):
        evaluate_plan(bert(), batches, plan, right)
    plan = plan_of([Head("bert.encoder", 1, 0)], {"bert.encoder": [4, 4]}, 1)
    with pytest.raises(ValueError, match="Pass the module that the monitor observed"):
        apply_plan(Classifier().model.bert, plan, {"input_ids": torch.ones(1, 3, dtype=torch.long)})


def right(output: Any, batch: dict[str, Tensor]) -> Tensor:
    return (output.logits.argmax(-1) == batch["labels"]).float()


def test_the_curve_is_what_zeroed_weights_give() -> None:
    torch.manual_seed(0)
    model = bert(dropout=0.3, initializer_range=0.3).train()
    heads = [Head("bert.encoder", layer, head) for head in range(4) for layer in range(2)]
    plan = plan_of(heads, {"bert.encoder": [4, 4]}, 4)
    batches = loader(30, batch_size=7)  # the last batch is smaller
    curve = evaluate_plan(model, batches, plan, lambda o, b: o.logits[:, 0] - o.logits[:, 1], seeds=2)
    assert curve.removed.tolist() == [1, 2, 3, 4]
    assert curve.random.shape == (2, 4)
    assert model.training
    np.testing.assert_array_equal(curve.plan, curve.importance)  # no similarity in this plan
    model.eval()

    def quality() -> float:
        with torch.no_grad():
            logits = torch.cat([model(**batch).logits for batch in batches])
        return float((logits[:, 0] - logits[:, 1]).mean())

    assert curve.whole == pytest.approx(quality(), abs=1e-5)
    for point in range(4):
        zero(model, heads[point])
        assert curve.plan[point] == pytest.approx(quality(), abs=1e-5)
    assert "50 %" in str(curve)


def test_one_batch_is_held_at_a_time() -> None:
    """Nor is the data read twice: what yields it may be a generator."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def batches() -> Iterator[Any]:
        nonlocal most
        for batch in loader(24, batch_size=4):
            alive.append(weakref.ref(batch["input_ids"]))
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            yield batch

    plan = plan_of([Head("bert.encoder", 1, 0)], {"bert.encoder": [4, 4]}, 1)
    torch.manual_seed(0)
    model = bert()
    streamed = evaluate_plan(model, batches(), plan, right, seeds=1)
    assert len(alive) == 6
    assert most <= 3  # the next one, the one at work, and the first, which the loop still names
    assert str(streamed) == str(evaluate_plan(model, list(loader(24, batch_size=4)), plan, right, seeds=1))


def zero(model: nn.Module, head: Head) -> None:
    weight = model.bert.encoder.layer[head.layer].attention.output.dense.weight
    weight.data[:, 8 * head.head : 8 * head.head + 8] = 0.0


def test_what_cannot_be_evaluated() -> None:
    plan = plan_of([Head("bert.encoder", 1, 0)], {"bert.encoder": [4, 4]}, 1)
    with pytest.raises(ValueError, match="`dataloader` to yield batches, but it is empty"):
        evaluate_plan(bert(), [], plan, right)
    with pytest.raises(ValueError, match=r"`removed` to be numbers from 1 to 1, but got \[2\]"):
        evaluate_plan(bert(), loader(4), plan, right, removed=[2])
    silencer = Silencer(bert(), Call.from_batch(next(iter(loader(2)))))
    with pytest.raises(ValueError, match=r"`heads` .* \[4, 4\]\}, but got \('bert.encoder', 1, 4\)\. Take"):
        silencer.silenced([Head("bert.encoder", 1, 4)])
