"""Which tokens are padding, and at which places queries and keys stand, where only a model knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lightning_geo import measure
from support.written_attention import LENGTH, SMALL, close, entropy_of, ids, padded, pattern_of


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_padding_that_sees_itself_is_no_token_xlnet() -> None:
    config = transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48)
    model = transformers.XLNetModel(config).eval()
    mask = padded([7, 12], left=True)
    batch = {"input_ids": ids(), "attention_mask": mask}
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions
    record = measure(model, batch, metrics=["entropy"])
    for layer, p in enumerate(attentions):
        close(record, "entropy", layer, entropy_of(p, mask.bool()))


@pytest.mark.parametrize("extra", ["add_bias_kv", "add_zero_attn"])
def test_padding_beside_keys_that_belong_to_no_token(extra: str) -> None:
    attention = nn.MultiheadAttention(32, 4, batch_first=True, **{extra: True}).eval()
    x, keep = torch.randn(3, LENGTH, 32), padded([5, 12, 9]).bool()
    with torch.no_grad():
        attention.in_proj_weight.mul_(3)
        p = attention(x, x, x, key_padding_mask=~keep, average_attn_weights=False)[1]
    batch = {"query": x, "key": x, "value": x, "key_padding_mask": ~keep}
    close(measure(attention, batch, metrics=["entropy"]), "entropy", 0, entropy_of(p, keep))


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()


def test_queries_behind_a_learned_prefix_keep_their_places() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        llama(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    ).eval()
    batch = {"input_ids": ids(), "attention_mask": padded([LENGTH, LENGTH])}
    record = measure(model, batch, metrics=["pattern"])
    uneven = {**batch, "attention_mask": padded([5, LENGTH])}
    entropies = measure(model, uneven, metrics=["entropy"])
    model.base_model.set_attn_implementation("eager")
    with torch.no_grad():
        p = model(**batch, output_attentions=True).attentions[0]
        q = model(**uneven, output_attentions=True).attentions[0]
    for name, expected in pattern_of(p, offset=5).items():
        close(record, name, 0, expected)
    close(entropies, "entropy", 0, entropy_of(q, uneven["attention_mask"].bool()))


def test_queries_behind_a_cache_keep_their_places() -> None:
    model, tokens = llama(), ids()
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=tokens[:, :5], past_key_values=cache)
    record = measure(model, {"input_ids": tokens[:, 5:], "past_key_values": cache}, metrics=["pattern"])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        p = model(input_ids=tokens, output_attentions=True).attentions[0][:, :, 5:]
    for name, expected in pattern_of(p, offset=5).items():
        close(record, name, 0, expected)


def test_a_cache_of_fixed_size_has_no_positions_and_it_is_said() -> None:
    """Its keys end in rows that hold nothing yet: nothing but their mask tells."""
    model, tokens = llama(), ids()
    cache = transformers.StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad():
        model(input_ids=tokens[:, :5], past_key_values=cache)
    batch = {"input_ids": tokens[:, 5:], "past_key_values": cache}
    record = measure(model, batch, metrics=["entropy", "pattern"])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        p = model(input_ids=tokens, output_attentions=True).attentions[0][:, :, 5:]
    close(record, "entropy", 0, entropy_of(p))
    assert "self_mass" not in record.stacks["model"]
    assert any("among its keys are unknown" in reason for reason in record.coverage["left_out"])


class Reader(nn.Module):
    """One ``nn.MultiheadAttention`` whose queries, keys and values are given."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.norm, self.mha, self.call = (
            nn.LayerNorm(32),
            nn.MultiheadAttention(32, 4, batch_first=True),
            call,
        )

    def forward(self, x: Tensor, *memory: Tensor) -> Tensor:
        return x + self.call(self, x, *memory)[0]


def test_a_query_that_is_normalised_alone_is_of_the_same_sequence() -> None:
    model = Reader(lambda m, x: m.mha(m.norm(x), x, x)).eval()
    x = torch.randn(3, LENGTH, 32)
    with torch.no_grad():
        p = model.mha(model.norm(x), x, x, average_attn_weights=False)[1]
    record = measure(model, x, metrics=["entropy", "pattern"])
    assert list(record.stacks) == ["model"]
    for name, expected in pattern_of(p, offset=0).items():
        close(record, name, 0, expected)


def test_memory_given_by_position_is_another_sequence() -> None:
    model = Reader(lambda m, x, y: m.mha(m.norm(x), y, y)).eval()
    x, memory = torch.randn(3, LENGTH, 32), torch.randn(3, LENGTH, 32)
    with torch.no_grad():
        p = model.mha(model.norm(x), memory, memory, average_attn_weights=False)[1]
    record = measure(model, (x, memory), metrics=["entropy", "pattern"])
    assert list(record.stacks) == ["model.cross"]
    close(record, "entropy", 0, entropy_of(p))
    assert not [
        name
        for name in record.stacks["model.cross"]
        if name.endswith("_mass") or name == "attention_distance"
    ]
