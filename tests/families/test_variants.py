"""What families have in common: wrappers, modes and ways of calling that must not change a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from families.expected import probabilities
from families.family import BATCH, LENGTH, PAD
from families.handwritten import Block
from families.models import FAMILIES
from families.reference import layers_of
from families.test_measure import record_of
from lightning_geo import measure
from lightning_geo.storage.record import GeometryRecord

SPECIAL = (7, 11, 13, 17)


def assert_same(one: GeometryRecord, other: GeometryRecord, stacks: dict[str, str] | None = None) -> None:
    """Equal numbers in every stack and metric, up to a few roundings in float32: another order of sums."""
    stacks = stacks or {name: name for name in one.stacks}
    assert set(one.stacks) == set(stacks)
    assert set(other.stacks) == set(stacks.values())
    for mine, theirs in stacks.items():
        assert set(one.stacks[mine]) == set(other.stacks[theirs])
        for metric, values in one.stacks[mine].items():
            np.testing.assert_allclose(
                values, other.stacks[theirs][metric], rtol=1e-5, atol=1e-6, err_msg=f"{mine}/{metric}"
            )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "llama", "falcon", "t5", "transformer_encoder"])
def test_a_mask_that_hides_nothing_changes_nothing(name: str, implementation: str) -> None:
    family = FAMILIES[name]
    if implementation not in family.implementations:
        implementation = family.implementations[0]
    padded, batch = family.batch("right"), family.batch("none")
    ones = {k: torch.ones_like(v) for k, v in padded.items() if k.endswith("mask")}
    assert ones
    record = measure(family.build(implementation), {**batch, **ones})
    assert_same(record, record_of(name, implementation, "none"))


@pytest.mark.parametrize("name", ["bert", "gpt2", "deberta_v2", "transformer_encoder"])
def test_training_mode_and_dropout_are_put_aside_and_back(name: str) -> None:
    family = FAMILIES[name]
    implementation = family.implementations[0]
    model = family.build(implementation).train()
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    for dropout in dropouts:
        dropout.p = 0.5
    assert dropouts
    dropouts[0].eval()
    record = measure(model, family.batch("right"))
    assert model.training
    assert not dropouts[0].training
    assert_same(record, record_of(name, implementation, "right"))


def test_a_batch_may_be_a_mapping_a_tuple_or_a_tensor() -> None:
    model, batch = FAMILIES["bert"].build("sdpa"), FAMILIES["bert"].batch("none")
    known = record_of("bert", "sdpa", "none")
    assert_same(measure(model, batch["input_ids"]), known)
    assert_same(measure(model, (batch["input_ids"],)), known)


@pytest.mark.parametrize(
    ("head", "inner", "stacks"),
    [
        ("BertForSequenceClassification", "bert", {"bert.encoder": "encoder"}),
        ("GPT2LMHeadModel", "gpt2", {"transformer": "h"}),
        ("LlamaForCausalLM", "llama", {"model": "layers"}),
        (
            "T5ForConditionalGeneration",
            "t5",
            {"encoder": "encoder", "decoder": "decoder", "decoder.cross": "decoder.cross"},
        ),
        (
            "WhisperForConditionalGeneration",
            "whisper",
            {
                "model.encoder": "encoder",
                "model.decoder": "decoder",
                "model.decoder.cross": "decoder.cross",
            },
        ),
    ],
)
def test_a_task_head_changes_names_only(head: str, inner: str, stacks: dict[str, str]) -> None:
    family = FAMILIES[inner]
    base = family.build("sdpa")
    model = getattr(transformers, head)(base.config).eval()
    model.base_model.load_state_dict(base.state_dict(), strict=False)
    if inner == "t5":  # its base model is itself
        model.load_state_dict(base.state_dict(), strict=False)
    assert_same(measure(model, family.batch("right")), record_of(inner, "sdpa", "right"), stacks)


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "deberta_v2"])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_special_mass(name: str, padding: str) -> None:
    """Probability on keys whose input id is special, from the reference's probabilities."""
    family = FAMILIES[name]
    batch = family.batch(padding)
    record = measure(family.build("eager"), batch, metrics="special_mass", special_token_ids=SPECIAL)
    for stack in family.stacks:
        if stack.is_cross:
            continue
        ids = batch[stack.tokens.replace("attention_mask", "input_ids")]
        special = torch.isin(ids, torch.tensor(SPECIAL)).numpy()
        assert special.any()
        for index, layer in enumerate(layers_of(name, padding)[stack.name]):
            mass = (probabilities(layer) * special[:, None, None, :]).sum(-1)
            rows = [m[:, valid].mean(-1) for m, valid in zip(mass, layer.queries, strict=True)]
            values = record.stacks[stack.name]["special_mass"][index]
            np.testing.assert_allclose(values, np.mean(rows, axis=0), atol=1e-6)


def test_a_padded_batch_measures_its_sequences_as_if_alone() -> None:
    """Padding changes nothing: the mean of three records is the record of three padded sequences."""
    family = FAMILIES["bert"]
    model, batch = family.build("sdpa"), family.batch("right")
    alone = [
        measure(
            model, {"input_ids": ids[valid.bool()][None]}, metrics=("entropy", "pattern", "cone", "stream")
        )
        for ids, valid in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    together = record_of("bert", "sdpa", "right")
    for metric in alone[0].stacks["encoder"]:
        reduce = np.max if metric == "max_logit" else np.mean
        separate = reduce([record[metric] for record in alone], axis=0)
        np.testing.assert_allclose(together[metric], separate, rtol=2e-6, atol=2e-6, err_msg=metric)


def test_what_stands_at_padding_has_no_influence() -> None:
    family = FAMILIES["llama"]
    model, batch = family.build("sdpa"), family.batch("left")
    other = torch.where(batch["attention_mask"].bool(), batch["input_ids"], PAD + 30)
    assert (other != batch["input_ids"]).any()
    record = measure(model, {**batch, "input_ids": other})
    assert_same(record, record_of("llama", "sdpa", "left"))


class Mixed(nn.Module):
    """Attention in the first and last of three layers, as in models that mix it with other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block("sdpa"), nn.Linear(32, 32), Block("sdpa")])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, None)[0] if isinstance(layer, Block) else layer(x)
        return x


def test_a_layer_without_attention_is_a_row_of_nan() -> None:
    torch.manual_seed(0)
    record = measure(Mixed(), torch.randn(BATCH, LENGTH, 32))
    assert list(record.stacks) == ["layers"]
    assert record["entropy"].shape == (3, 4)
    np.testing.assert_array_equal(np.isnan(record["entropy"]).all(1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(record["entropy"]).any(1), [False, True, False])


class OneBlock(nn.Module):
    """No list anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block("sdpa")

    def forward(self, x: torch.Tensor) -> Any:
        return self.block(x, None)[0]


def test_attention_outside_any_list_is_one_layer() -> None:
    torch.manual_seed(0)
    record = measure(OneBlock(), torch.randn(BATCH, LENGTH, 32))
    assert len(record.stacks) == 1
    assert record["entropy"].shape == (1, 4)


class WithPositions(nn.Module):
    """Positions are added to queries and keys alone, as in DETR; or each is normalised for itself."""

    def __init__(self, positions: bool, batch_first: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.positions = nn.Parameter(torch.randn(LENGTH, 32)) if positions else None
        self.batch_first = batch_first
        self.layers = nn.ModuleList([nn.MultiheadAttention(32, 4, batch_first=batch_first)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = self.norm(x), self.norm(x)
        if self.positions is not None:
            query = key = query + self.positions
        query, key, x = (t if self.batch_first else t.transpose(0, 1) for t in (query, key, x))
        return self.layers[0](query, key, x)[0]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("positions", [True, False])
def test_self_attention_by_separate_tensors_is_not_cross_attention(
    positions: bool, batch_first: bool
) -> None:
    torch.manual_seed(0)
    record = measure(WithPositions(positions, batch_first), torch.randn(BATCH, LENGTH, 32))
    assert list(record.stacks) == ["layers"]
    assert "self_mass" in record


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "gpt_oss", "deberta_v2", "handwritten"])
def test_half_precision_stays_near(name: str, dtype: torch.dtype) -> None:
    """The model itself computes other numbers then; the statistics of them are not worse."""
    family = FAMILIES[name]
    model = family.build(family.implementations[0]).to(dtype)
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in family.batch("right").items()}
    record = measure(model, batch)
    known = record_of(name, family.implementations[0], "right")
    # in steps of the type: three times what was seen, in bfloat16 and in float16 alike
    for metric, steps in {"entropy": 3, "cone.output": 0.3, "effective_rank.query": 3}.items():
        assert record[metric].dtype == np.float32
        atol = steps * torch.finfo(dtype).eps
        np.testing.assert_allclose(record[metric], known[metric], atol=atol, err_msg=metric)


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "deberta_v2", "transformer_encoder", "falcon"])
def test_measuring_leaves_nothing_behind(name: str) -> None:
    """Same outputs, flags, hooks, random numbers and attention table before and after."""
    from transformers.modeling_utils import AttentionInterface

    from support.same import attention_lookup

    family = FAMILIES[name]
    model = family.build(family.implementations[0])
    batch = family.batch("right")
    model.requires_grad_(True)

    def outcome() -> list[Any]:
        with torch.enable_grad():
            output = model(**batch)
        values = output.values() if isinstance(output, dict) else vars(output).values()
        return [v.detach().clone() for v in values if isinstance(v, torch.Tensor)]

    def state() -> list[Any]:
        modules = list(model.modules())
        return [
            [m.training for m in modules],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
            [p.grad is None and p.requires_grad for p in model.parameters()],
            torch.get_rng_state().tolist(),
            dict(AttentionInterface._global_mapping),
            attention_lookup(),
            torch.is_grad_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch._C._len_torch_function_stack(),
        ]

    before, expected = state(), outcome()
    measure(model, batch)
    assert state() == before
    for one, other in zip(outcome(), expected, strict=True):
        assert torch.equal(one, other)
