"""Families that compute several softmaxes, or attention in pieces: right rows, or none and a reason."""

from __future__ import annotations

import pytest
import torch
import transformers

from lightning_geo import measure
from support.written_attention import SMALL, close, entropy_of, ids, rows


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
