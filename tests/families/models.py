"""Tiny random models of every family: what ``measure`` is proved right on.

One table: how a model is built, which stacks it has, and where the *reference* finds each stack's
attention probabilities and its valid tokens. Nothing here imports lightning_geo.
"""

from __future__ import annotations

from typing import Any

from families import handwritten
from families.family import (
    PAD,
    SCALE,
    SOURCE_LENGTH,
    VOCABULARY,
    Family,
    Stack,
    audio,
    auto,
    floats,
    image,
    randomize,
    text,
    text_and_image,
    text_to_text,
    two_floats,
)

_SIZE = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "pad_token_id": PAD}
# 2 layers of width 32 with 4 heads of 8
_BERT = {
    **_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_GQA = {**_BERT, "num_key_value_heads": 2, "head_dim": 8}
_SEQ2SEQ = {
    **_SIZE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 12,
    "patch_size": 4,
}


def _seq2seq(
    encoder: str,
    decoder: str,
    self_attention: str,
    cross_attention: str,
    encoder_attention: str,
    *,
    from_audio: bool = False,
    prefix: str = "",
    **more: Any,
) -> tuple[Stack, ...]:
    source = "" if from_audio else "attention_mask"
    target = "decoder_attention_mask"
    return (
        Stack(f"{prefix}encoder", encoder, encoder_attention, "encoder_attentions", source, source, **more),
        Stack(
            f"{prefix}decoder",
            decoder,
            self_attention,
            "decoder_attentions",
            target,
            target,
            causal=True,
            **more,
        ),
        Stack(f"{prefix}decoder.cross", decoder, cross_attention, "cross_attentions", target, source, **more),
    )


def _causal(name: str, blocks: str, attention: str, **more: Any) -> tuple[Stack, ...]:
    return (Stack(name, blocks, attention, causal=True, **more),)


def _vision(name: str, blocks: str, attention: str) -> tuple[Stack, ...]:
    return (Stack(name, blocks, attention, tokens="", keys=""),)


_BERT_LIKE = (Stack("encoder", "encoder.layer", "attention.self", projections=("query", "key", "value")),)
_LLAMA_LIKE = _causal("layers", "layers", "self_attn")
_HAND = ("eager",)  # no other implementation exists: softmax is written out in the model
_FLEX = ("sdpa", "eager", "flex_attention")

_ALL = (
    Family("bert", auto("Bert", **_BERT), text, _BERT_LIKE, _FLEX),
    Family("roberta", auto("Roberta", **_BERT), text, _BERT_LIKE),
    Family("electra", auto("Electra", embedding_size=32, **_BERT), text, _BERT_LIKE),
    Family(
        "distilbert",
        auto("DistilBert", dim=32, n_layers=2, n_heads=4, hidden_dim=48, **_SIZE),
        text,
        (Stack("transformer", "transformer.layer", "attention", projections=("q_lin", "k_lin", "v_lin")),),
    ),
    Family(
        "albert",
        auto("Albert", embedding_size=16, **{**_BERT, "num_hidden_layers": 3}),
        text,
        (
            Stack(
                "encoder",
                "encoder.albert_layer_groups.0.albert_layers",
                "attention",
                layers=3,
                projections=("query", "key", "value"),
            ),
        ),
    ),
    Family(
        "modernbert",
        auto(
            "ModernBert",
            local_attention=4,
            layer_types=["full_attention", "sliding_attention"],
            bos_token_id=2,
            eos_token_id=3,
            cls_token_id=2,
            sep_token_id=3,
            **_BERT,
        ),
        text,
        (Stack("layers", "layers", "attn", window=3, windowed=(False, True), projections=("Wqkv",)),),
    ),
    Family(
        "deberta_v2",
        auto("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], **_BERT),
        text,
        (
            Stack(
                "encoder",
                "encoder.layer",
                "attention.self",
                projections=("query_proj", "key_proj", "value_proj"),
                prescaled=(1.0, (3 * 8) ** -0.5),  # of three terms
                scale=None,
            ),
        ),
        _HAND,
    ),
    Family(
        "mpnet",
        auto("MPNet", **_BERT),
        text,
        (Stack("encoder", "encoder.layer", "attention.attn", projections=("q", "k", "v"), scale=None),),
        _HAND,
    ),
    Family(
        "gpt2",
        auto("GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=VOCABULARY),
        text,
        _causal("h", "h", "attn", projections=("c_attn",)),
    ),
    Family(
        "gpt_neo",
        auto(
            "GPTNeo",
            num_layers=2,
            num_heads=4,
            hidden_size=32,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            vocab_size=VOCABULARY,
            max_position_embeddings=32,
        ),
        text,
        _causal("h", "h", "attn.attention", window=4, windowed=(False, True), scale=1.0),
        _HAND,
    ),
    Family(
        "gptj",
        auto("GPTJ", n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=VOCABULARY, rotary_dim=4),
        text,
        _causal("h", "h", "attn", projections=("", "", "v_proj")),
        _HAND,
    ),
    Family(
        "bloom",
        auto("Bloom", hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCABULARY),
        text,
        _causal(
            "h", "h", "self_attention", projections=("query_key_value",), fused="interleaved", scale=None
        ),
        _HAND,
    ),
    Family(
        "falcon",
        auto("Falcon", multi_query=True, **_BERT),
        text,
        _causal("h", "h", "self_attention", projections=("query_key_value",), fused="multi-query"),
    ),
    Family(
        "falcon_alibi",
        auto("Falcon", alibi=True, multi_query=False, **_BERT),
        text,
        _causal(
            "h", "h", "self_attention", projections=("query_key_value",), fused="interleaved", scale=None
        ),
        _HAND,  # of this release adds the bias twice, sdpa once: no twin to hold sdpa to
    ),
    Family(
        "gpt_neox",
        auto("GPTNeoX", **_BERT),
        text,
        _causal("layers", "layers", "attention", projections=("query_key_value",), fused="interleaved"),
    ),
    Family("llama", auto("Llama", **_GQA), text, _LLAMA_LIKE),
    Family("qwen2", auto("Qwen2", **{**_BERT, "num_key_value_heads": 2}), text, _LLAMA_LIKE),
    Family(
        "mistral",
        auto("Mistral", sliding_window=4, **_GQA),
        text,
        _causal("layers", "layers", "self_attn", window=4, windowed=(True, True)),
    ),
    Family(
        "gemma2",
        auto(
            "Gemma2",
            sliding_window=4,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=3.0,  # low, so that an unseen cap is far out of tolerance
            layer_types=["sliding_attention", "full_attention"],
            **_GQA,
        ),
        text,
        _causal("layers", "layers", "self_attn", window=4, windowed=(True, False), softcap=3.0),
        (
            "eager",
            "flex_attention",
        ),  # sdpa refuses softcap; flex compiles for seconds, so bert and this one only
    ),
    Family(
        "gpt_oss",
        auto(
            "GptOss",
            sliding_window=4,
            num_local_experts=2,
            num_experts_per_tok=1,
            layer_types=["sliding_attention", "full_attention"],
            **_GQA,
        ),
        text,
        _causal("layers", "layers", "self_attn", window=4, windowed=(True, False)),
        _HAND,  # sdpa has no sinks, flex_attention none on CPU
    ),
    Family("phi", auto("Phi", **_BERT), text, _LLAMA_LIKE),
    Family(
        "opt",
        auto(
            "OPT", word_embed_proj_dim=32, ffn_dim=48, **{k: v for k, v in _BERT.items() if "inter" not in k}
        ),
        text,
        _causal("decoder", "decoder.layers", "self_attn", prescaled=(SCALE, 1.0), scale=1.0),
    ),
    Family(
        "t5",
        auto(
            "T5",
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            vocab_size=VOCABULARY,
            pad_token_id=PAD,
        ),
        text_to_text,
        _seq2seq(
            "encoder.block",
            "decoder.block",
            "layer.0.SelfAttention",
            "layer.1.EncDecAttention",
            "layer.0.SelfAttention",
            projections=("q", "k", "v"),
            scale=1.0,
            biased=True,
        ),
    ),
    Family(
        "bart",
        auto("Bart", **_SEQ2SEQ),
        text_to_text,
        _seq2seq("encoder.layers", "decoder.layers", "self_attn", "encoder_attn", "self_attn"),
    ),
    Family(
        "whisper",
        auto(
            "Whisper",
            num_mel_bins=8,
            max_source_positions=SOURCE_LENGTH,
            max_target_positions=32,
            **{k: v for k, v in _SEQ2SEQ.items() if k != "max_position_embeddings"},
        ),
        audio,
        _seq2seq(
            "encoder.layers",
            "decoder.layers",
            "self_attn",
            "encoder_attn",
            "self_attn",
            from_audio=True,
            prescaled=(SCALE, 1.0),
            scale=1.0,
        ),
    ),
    Family("vit", auto("ViT", **_VIT), image, _vision("layers", "layers", "attention"), paddings=("none",)),
    Family(
        "dinov2",
        auto("Dinov2", mlp_ratio=2, **{k: v for k, v in _VIT.items() if "inter" not in k}),
        image,
        _vision("encoder", "encoder.layer", "attention"),
        paddings=("none",),
    ),
    Family(
        "swin",
        # 4 x 4 patches in 2 x 2 windows, the second block of the first stage shifted; 2 then 4 heads
        auto(
            "Swin", image_size=16, patch_size=4, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=2
        ),
        lambda padding: image(padding, size=16),
        (
            Stack(
                "encoder",
                "encoder.layers.*.blocks",
                "attention",
                attentions="",  # the model tells only each stage's last
                tokens="",
                keys="",
                layers=3,
                projections=("q_proj", "k_proj", "v_proj", "relative_position_bias"),
            ),
        ),
        paddings=("none",),
    ),
    Family(
        "clip",
        auto(
            "CLIP",
            text_config={**_BERT, "eos_token_id": 3, "bos_token_id": 2},
            vision_config=_VIT,
            projection_dim=16,
        ),
        text_and_image,
        (
            Stack(
                "text_model.encoder",
                "text_model.encoder.layers",
                "self_attn",
                "text_model_output.attentions",
                causal=True,
            ),
            Stack(
                "vision_model.encoder",
                "vision_model.encoder.layers",
                "self_attn",
                "vision_model_output.attentions",
                tokens="",
                keys="",
            ),
        ),
    ),
    Family(
        "transformer_encoder",
        lambda implementation: randomize(handwritten.Encoder(implementation)),
        floats,
        (Stack("encoder", "encoder.layers", "self_attn", projections=("", "", "")),),
        ("sdpa",),
    ),
    Family(
        "transformer",
        lambda implementation: randomize(handwritten.Transformer(implementation)),
        two_floats,
        _seq2seq(
            "transformer.encoder.layers",
            "transformer.decoder.layers",
            "self_attn",
            "multihead_attn",
            "self_attn",
            prefix="transformer.",
            projections=("", "", ""),
            sequence_first=True,
        ),
        ("sdpa",),
        ("none", "right"),  # torch's weights are NaN for rows that see nothing
    ),
    Family(
        "handwritten",
        lambda implementation: randomize(handwritten.Model(implementation)),
        floats,
        (Stack("blocks", "blocks", "attention", causal=True, projections=("qkv",)),),
        ("sdpa", "eager", "einsum"),
    ),
)

FAMILIES = {family.name: family for family in _ALL}
