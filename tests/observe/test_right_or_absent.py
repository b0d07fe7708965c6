"""Attention of kinds that only some models compute: right numbers on the right rows, or none and a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from lightning_geo import measure
from lightning_geo.storage.record import GeometryRecord

LENGTH = 12
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def ids(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 64, (batch, length))


def padded(lengths: Sequence[int], left: bool = False, length: int = LENGTH) -> Tensor:
    positions = torch.arange(length)
    return torch.stack([(positions >= length - n if left else positions < n).long() for n in lengths])


def mean_of(rows: Tensor, real: Tensor | None = None) -> np.ndarray:
    """[B, H, Nq] to [H]: over real rows, then over sequences."""
    weights = torch.ones_like(rows) if real is None else real[:, None].double().expand_as(rows)
    return ((rows * weights).sum(-1) / weights.sum(-1)).mean(0).numpy()


def entropy_of(p: Tensor, real: Tensor | None = None) -> np.ndarray:
    p = p.double() / p.double().sum(-1, keepdim=True)
    return mean_of(-(p * p.clamp_min(1e-300).log()).sum(-1), real)


def pattern_of(p: Tensor, offset: int) -> dict[str, np.ndarray]:
    p = p.double()
    distance = torch.arange(p.shape[-2])[:, None] + offset - torch.arange(p.shape[-1])
    weights = {
        "self_mass": distance == 0, "previous_mass": distance == 1, "next_mass": distance == -1,
        "backward_mass": distance > 0, "forward_mass": distance < 0, "attention_distance": distance.abs(),
    }  # fmt: skip
    return {name: mean_of((p * weight).sum(-1)) for name, weight in weights.items()}


def close(record: GeometryRecord, name: str, layer: int, expected: np.ndarray) -> None:
    # ten times what was seen, a few roundings of float32
    np.testing.assert_allclose(record[name][layer], expected, atol=7e-6, err_msg=name)


def rows(record: GeometryRecord) -> dict[str, list[str]]:
    """stack -> modules that attend."""
    return {
        name: [m for m, heads in zip(stack["modules"], stack["heads"], strict=True) if heads]
        for name, stack in record.model["stacks"].items()
    }


# -- tokens


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


# -- positions


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


# -- several attentions in a module


class Block(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.qkv, self.out, self.attend, self.num_heads = nn.Linear(32, 96), nn.Linear(32, 32), attend, 4
        self.size = 8
        with torch.no_grad():
            self.qkv.weight.mul_(3)

    def heads(self, x: Tensor) -> Tensor:
        return self.qkv(x).unflatten(-1, (3, -1, self.size)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.attend(*self.heads(x)).transpose(1, 2).flatten(2))


class Stack(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(attend) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * q.shape[-1] ** -0.5


def differential(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    one = F.scaled_dot_product_attention(q, k, v)
    return one - 0.5 * F.scaled_dot_product_attention(q.flip(-1), k, v)


def joint(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores_of(q, k).softmax(-1) - 0.5 * scores_of(q.flip(-1), k).softmax(-1)) @ v


@pytest.mark.parametrize("attend", [differential, joint])
def test_two_attentions_of_a_module_are_named_parts_of_its_layer(attend: Callable[..., Tensor]) -> None:
    model, x = Stack(attend).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy"])
    assert rows(record) == {"layers": ["layers.0", "layers.1"], "layers.part2": ["layers.0", "layers.1"]}
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    close(record, "entropy", 0, entropy_of(scores_of(q.double(), k.double()).softmax(-1)))
    second = entropy_of(scores_of(q.double().flip(-1), k.double()).softmax(-1))
    np.testing.assert_allclose(record["layers.part2/entropy"][0], second, atol=1e-6)
    assert record["entropy"].shape == (2, 4)  # the bare name is the layer's own


def gated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ConViT: a second softmax is of positions, not of queries and keys."""
    places = torch.arange(q.shape[2], dtype=q.dtype)
    positional = (-(places[:, None] - places).abs()).softmax(-1)
    return (0.7 * scores_of(q, k).softmax(-1) + 0.3 * positional) @ v


def discarded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores_of(q.flip(-1), k).softmax(-1)
    return F.scaled_dot_product_attention(q, k, v)


def sequential(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.Sequential(nn.Softmax(-1), nn.Dropout(0.1).eval())(scores_of(q, k)) @ v


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Probabilities are used, but in no product that is known."""
    return (scores_of(q, k).softmax(-1)[..., None] * v[:, :, None]).sum(-2)


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k).mul_(q.shape[-1] ** -0.5)
    scores += torch.zeros(1, 1, 1, q.shape[2])
    return torch.einsum("bhij,bhjd->bhid", F.dropout(scores.softmax(-1), 0.1, False), v)


def transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys before queries, softmax over rows, values from the left."""
    return (v.mT @ (scores_of(k, q)).softmax(-2)).mT


@pytest.mark.parametrize("attend", [gated, discarded, sequential, summed, in_place, transposed])
def test_one_attention_of_queries_and_keys_is_one_layer(attend: Callable[..., Tensor]) -> None:
    model, x = Stack(attend).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy", "pattern"])
    assert rows(record) == {"layers": ["layers.0", "layers.1"]}
    assert record.coverage["left_out"] == {}
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    p = scores_of(q.double(), k.double()).softmax(-1)
    close(record, "entropy", 0, entropy_of(p))
    for name, expected in pattern_of(p, offset=0).items():
        close(record, name, 0, expected)


@pytest.mark.parametrize("offset", [0.0, -1e5])
def test_scores_of_a_diverging_model_hide_nothing(offset: float) -> None:
    """Far below what masks hide with, and still the softmax's own."""
    model, x = (
        Stack(lambda q, k, v: (scores_of(q, k) * 2000 + offset).softmax(-1) @ v),
        torch.randn(3, 12, 32),
    )
    record = measure(model.eval(), x, metrics=["entropy"])
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    scores = (scores_of(q, k) * 2000 + offset).double()
    assert scores.min() < -9000
    close(record, "entropy", 0, entropy_of(scores.softmax(-1)))
    expected = entropy_of(scores.softmax(-1)) / np.log(12)
    close(record, "normalized_entropy", 0, expected)
    np.testing.assert_allclose(record["max_logit"][0], scores.amax((0, 2, 3)), rtol=1e-5)


def test_learned_sinks_without_key_are_no_column() -> None:
    sinks = nn.Parameter(torch.randn(4))

    def with_sinks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        column = sinks.view(1, -1, 1, 1).expand(len(q), -1, q.shape[2], 1)
        return torch.cat([scores_of(q, k), column], dim=-1).softmax(-1)[..., :-1] @ v

    model, x = Stack(with_sinks).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy", "pattern"])
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    p = scores_of(q.double(), k.double()).softmax(-1)
    close(record, "entropy", 0, entropy_of(p))
    close(record, "self_mass", 0, pattern_of(p, offset=0)["self_mass"])


@pytest.mark.parametrize(
    "hide",
    [
        lambda scores, hidden: scores + hidden.long() * -10_000,
        lambda scores, hidden: scores + hidden.half() * -10_000,
        lambda scores, hidden: torch.add(scores, hidden.float(), alpha=-1e4),
        lambda scores, hidden: scores - 1e4 * hidden.float(),
        lambda scores, hidden: scores.masked_fill(hidden, -1e4),
        lambda scores, hidden: scores.where(~hidden, -100.0),
        lambda scores, hidden: torch.where(hidden, torch.full_like(scores, -1e9), scores),
        lambda scores, hidden: torch.minimum(scores, torch.where(hidden, -1e5, torch.inf)),
        lambda scores, hidden: scores.index_fill(-1, torch.tensor([LENGTH - 1]), -1e4),
    ],
)
def test_whatever_hides_keys_in_scores_hides_them(hide: Callable[[Tensor, Tensor], Tensor]) -> None:
    hidden = torch.arange(LENGTH) == LENGTH - 1

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return hide(scores_of(q, k), hidden).softmax(-1) @ v

    model, x = Stack(attend).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy"])
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    p = scores_of(q.double(), k.double()).masked_fill(hidden, -torch.inf).softmax(-1)
    real = (~hidden).expand(3, -1)  # a key that nobody sees is padding
    close(record, "entropy", 0, entropy_of(p, real))
    close(record, "normalized_entropy", 0, entropy_of(p, real) / np.log(LENGTH - 1))


@pytest.mark.parametrize("rows", [False, True])
def test_one_head_in_slices_is_one_head(rows: bool) -> None:
    def sliced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if rows:
            return torch.cat([scores_of(q[:, :, i : i + 4], k).softmax(-1) @ v for i in (0, 4, 8)], dim=2)
        return torch.cat([scores_of(q[i : i + 1], k[i : i + 1]).softmax(-1) @ v[i : i + 1] for i in range(3)])

    model, x = Stack(sliced).eval(), torch.randn(3, LENGTH, 32)
    for layer in model.layers:
        layer.num_heads, layer.size = 1, 32
    record = measure(model, x, metrics=["entropy"])
    assert [stack["heads"] for stack in record.model["stacks"].values()] == [[1, 1]]
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    close(record, "entropy", 0, entropy_of(scores_of(q.double(), k.double()).softmax(-1)))


def test_attention_in_slices_of_the_batch_is_one_attention() -> None:
    def sliced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [slice(0, 1), slice(1, 2), slice(2, 3)]
        return torch.cat([F.scaled_dot_product_attention(q[i], k[i], v[i]) for i in parts])

    model, x = Stack(sliced).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy"])
    assert rows(record) == {"layers": ["layers.0", "layers.1"]}
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    close(record, "entropy", 0, entropy_of(scores_of(q.double(), k.double()).softmax(-1)))


@pytest.mark.parametrize("by_hand", [False, True])
def test_attention_between_channels_is_absent_and_said(by_hand: bool) -> None:
    def channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if by_hand:
            q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
            return ((q.mT @ k).softmax(-1) @ v.mT).mT
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT

    model = Stack(channels).eval()
    model.layers[1].attend = F.scaled_dot_product_attention
    record = measure(model, torch.randn(3, LENGTH, 32), metrics=["entropy"])
    assert rows(record) == {"layers": ["layers.1"]}
    ((reason, modules),) = record.coverage["left_out"].items()
    assert "between channels" in reason
    assert modules == ["layers.0"]
    assert (record.coverage["seen"], record.coverage["measured"]) == (2, 1)


# -- families that compute several softmaxes, or in pieces


def test_diffllama_is_one_row_a_layer() -> None:
    model = transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**SMALL)).eval()
    record = measure(model, {"input_ids": ids()}, metrics=["entropy"])
    assert list(map(len, rows(record).values())) == [2]
    twice = int(transformers.__version__.partition(".")[0]) >= 5  # before, it attends once to wider values
    assert any("other values" in reason for reason in record.coverage["left_out"]) is twice
    model.set_attn_implementation("eager")
    assert list(map(len, rows(measure(model, {"input_ids": ids()}, metrics=["entropy"])).values())) == [2]


def test_bigbird_counts_every_key_once() -> None:
    config = transformers.BigBirdConfig(
        **SMALL, attention_type="block_sparse", block_size=4, num_random_blocks=1
    )
    model = transformers.BigBirdModel(config).eval()
    batch = {"input_ids": ids(length=64)}
    if int(transformers.__version__.partition(".")[0]) < 5:  # multiplies some blocks in another shape
        with pytest.raises(ValueError, match="a key could count twice"):
            measure(model, batch, metrics=["entropy", "pattern"])
        return
    record = measure(model, batch, metrics=["entropy", "pattern"])
    assert list(map(len, rows(record).values())) == [2]
    with torch.no_grad():
        p = model(**batch, output_attentions=True).attentions[0].double()
    # its own attentions overwrite the first block's probabilities with those of the random block, which is
    # the first block again in eval mode; both columns have the same keys, so the same probabilities
    lost = 1 - p.sum(-1, keepdim=True)
    p[..., :4] += torch.where(lost > 1e-3, p[..., :4], 0.0)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p.sum(-1)), atol=2e-6, rtol=0)
    close(record, "entropy", 0, entropy_of(p))
    assert "self_mass" not in record.stacks["encoder"]  # which key is which is not known


def test_sam2s_backbone_has_one_row_a_block_with_its_heads() -> None:
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[3],
    )  # fmt: skip
    config = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=16
    )
    model = transformers.Sam2VisionModel(config).eval()
    record = measure(model, {"pixel_values": torch.randn(1, 3, 64, 64)}, metrics=["entropy"])
    assert [stack["heads"] for stack in record.model["stacks"].values()] == [[1, 2, 4, 4, 8]]


def test_levit_has_one_row_for_each_attention() -> None:
    model = transformers.LevitModel(transformers.LevitConfig(image_size=64)).eval()
    record = measure(model, {"pixel_values": torch.randn(2, 3, 64, 64)}, metrics=["entropy"])
    kinds = ("LevitAttention", "LevitAttentionSubsample")
    attentions = [m for m in model.modules() if type(m).__name__ in kinds]
    assert sum(map(len, rows(record).values())) == len(attentions) == record.coverage["measured"]


def test_lxmert_reads_both_ways_with_one_module() -> None:
    config = transformers.LxmertConfig(
        vocab_size=64, hidden_size=32, num_attention_heads=4, intermediate_size=48, l_layers=2, x_layers=2,
        r_layers=1, visual_feat_dim=16,
    )  # fmt: skip
    model = transformers.LxmertModel(config).eval()
    batch = {"input_ids": ids(), "visual_feats": torch.randn(2, 5, 16), "visual_pos": torch.rand(2, 5, 4)}
    found = {stack: len(modules) for stack, modules in rows(measure(model, batch)).items()}
    assert found == {
        "encoder.layer": 2, "encoder.r_layers": 1, "encoder.x_layers.cross": 2,
        "encoder.x_layers.cross.part2": 2, "encoder.x_layers.lang_self_att": 2,
        "encoder.x_layers.visn_self_att": 2,
    }  # fmt: skip


def test_swin_v2_has_numbers_in_every_layer() -> None:
    config = transformers.Swinv2Config(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    model = transformers.Swinv2Model(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        attentions = model(pixels, output_attentions=True).attentions
    record = measure(model, {"pixel_values": pixels}, metrics=["entropy"])
    assert record["entropy"].shape == (4, 4)
    last = attentions[-1]  # of a stage, the last block
    close(record, "entropy", 3, entropy_of(last))
