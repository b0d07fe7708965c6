"""Small models of transformers with drawn sizes: the truth is what their eager twins return as attentions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import transformers
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.checking import Wrong, compare, measured
from harness.drawing import scattered
from harness.truth import Facts, Truth, numbers

__all__ = ["NAMES", "FamilyDescription", "check_family", "families"]

#: Another path in transformers 4.
_VIT = "layers.{}.attention" if transformers.__version__ >= "5" else "encoder.layer.{}.attention.attention"

#: Family -> path of layer i's attention, whether it is causal, whether the library routes its attention.
_FORMS: dict[str, tuple[str, bool, bool]] = {
    "Bert": ("encoder.layer.{}.attention", False, True),
    "GPT2": ("h.{}.attn", True, True),
    "Llama": ("layers.{}.self_attn", True, True),
    "Mistral": ("layers.{}.self_attn", True, True),
    "GPTNeo": ("h.{}.attn", True, False),
    "GPTNeoX": ("layers.{}.attention", True, True),
    "OPT": ("decoder.layers.{}.self_attn", True, True),
    "Bloom": ("h.{}.self_attention", True, False),
    "Falcon": ("h.{}.self_attention", True, False),
    "DebertaV2": ("encoder.layer.{}.attention.self", False, False),
    "XLNet": ("layer.{}.rel_attn", False, False),
    "ViT": (_VIT, False, True),
    "T5": ("", False, False),
}
NAMES = tuple(_FORMS)


@dataclass(frozen=True, repr=False)
class FamilyDescription:
    """One model of transformers and its inputs.

    Args:
        name: Of the family.
        implementation: ``eager`` or ``sdpa``.
        kv_heads: Of keys, where the family shares them.
        window: Keys back that a query sees, itself included; 0 for all.
        lengths: Real tokens by sequence, where ``padding`` is not none.
        mask: Type of the attention mask: int, bool, none.
        alibi: Falcon's.
        cache: Tokens that a cache holds already, for Llama.
        packed: Lengths of documents, told by position ids alone, for Llama.
    """

    name: str = "Bert"
    implementation: str = "sdpa"
    layers: int = 2
    heads: int = 2
    kv_heads: int = 2
    head_size: int = 8
    batch: int = 2
    length: int = 6
    source_length: int = 5
    padding: str = "none"
    lengths: tuple[int, ...] = ()
    mask: str = "int"
    window: int = 0
    alibi: bool = False
    cache: int = 0
    packed: tuple[int, ...] = ()
    dtype: str = "float32"
    seed: int = 0

    def __repr__(self) -> str:
        told = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"FamilyDescription({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in told)})"

    @property
    def real(self) -> Tensor:
        """[B, N] bool, tokens."""
        position = torch.arange(self.length)[None]
        if self.padding == "none":
            return torch.ones(self.batch, self.length, dtype=torch.bool)
        count = torch.tensor(self.lengths)[:, None]
        return position < count if self.padding == "right" else position >= self.length - count


@scattered
@st.composite
def families(draw: Callable[[st.SearchStrategy[Any]], Any]) -> FamilyDescription:
    """A family, sizes that fit it, and padding that it can take."""

    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    name = one_of(*NAMES)
    heads, length, batch = one_of(2, 4, 1), one_of(6, 4, 8, 12, 2, 1), one_of(2, 1, 3, 4)
    drawn: dict[str, Any] = {"name": name, "heads": heads, "length": length, "batch": batch}
    drawn |= {"seed": draw(st.integers(0, 99)), "layers": one_of(2, 1, 3), "head_size": one_of(8, 4)}
    drawn["kv_heads"] = one_of(*(n for n in (heads, 1, 2) if heads % n == 0))
    routed = _FORMS[name][2] or name == "Falcon"
    drawn["implementation"] = one_of("sdpa", "eager") if routed else "eager"
    if name == "Mistral":
        drawn["window"] = one_of(3, 2, 5)
    if name == "Falcon":
        drawn["alibi"] = draw(st.booleans())
        if drawn["alibi"]:  # in bfloat16, and its two ways round it differently: no twin of each other
            drawn["implementation"] = "eager"
    if name == "T5":
        drawn["source_length"] = one_of(5, length, 3)
    special = one_of("none", "none", "cache", "packed") if name == "Llama" and length > 1 else "none"
    if special == "cache":
        drawn["cache"] = one_of(2, 5)
    elif special == "packed":
        first = draw(st.integers(1, length - 1))
        drawn |= {"packed": (first, length - first), "mask": "none", "batch": 1}
    elif name != "ViT":
        drawn["padding"] = one_of("right", "none", "left") if length > 1 else "none"
        if drawn["padding"] != "none":
            drawn["lengths"] = tuple(draw(st.integers(1, length)) for _ in range(batch))
        drawn["mask"] = one_of("int", "bool") if drawn["padding"] != "none" else one_of("int", "none", "bool")
        if name in ("Bloom", "OPT", "Falcon", "XLNet", "DebertaV2", "T5") and drawn["mask"] == "bool":
            drawn["mask"] = "int"  # their own arithmetic takes no booleans
    return FamilyDescription(**drawn)


def _build(d: FamilyDescription, implementation: str) -> nn.Module:
    width = d.heads * d.head_size
    usual = {
        "vocab_size": 32, "hidden_size": width, "num_hidden_layers": d.layers, "num_attention_heads": d.heads,
        "intermediate_size": 2 * width, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    by_family: dict[str, dict[str, Any]] = {
        "GPT2": {"n_embd": width, "n_layer": d.layers, "n_head": d.heads, "n_positions": 64},
        "Llama": {"num_key_value_heads": d.kv_heads},
        "Mistral": {"num_key_value_heads": d.kv_heads, "sliding_window": d.window},
        "GPTNeo": {"num_layers": d.layers, "num_heads": d.heads, "attention_types": [[["global"], d.layers]]},
        "OPT": {"ffn_dim": 2 * width, "word_embed_proj_dim": width, "do_layer_norm_before": True},
        "Bloom": {"n_layer": d.layers, "n_head": d.heads},
        "Falcon": {"alibi": d.alibi, "multi_query": d.kv_heads == 1, "new_decoder_architecture": False},
        "DebertaV2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "XLNet": {"d_model": width, "n_layer": d.layers, "n_head": d.heads, "d_inner": 2 * width},
        "ViT": {"image_size": 8, "patch_size": 4, "num_channels": 1},
        "T5": {"d_model": width, "d_kv": d.head_size, "d_ff": 2 * width, "num_layers": d.layers,
               "num_heads": d.heads, "decoder_start_token_id": 0},
    }  # fmt: skip
    known = by_family.get(d.name, {})
    if d.name in ("GPT2", "XLNet", "T5"):
        usual = {name: usual[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    elif d.name == "OPT":
        del usual["intermediate_size"]
    config = getattr(transformers, f"{d.name}Config")(**usual, **known)
    config._attn_implementation = implementation
    with torch.random.fork_rng():
        torch.manual_seed(d.seed)
        model: nn.Module = getattr(transformers, f"{d.name}Model")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # untrained models attend nearly uniformly
                    parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 * 1.5)
    return model


def _batch(d: FamilyDescription) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(d.seed)
    if d.name == "ViT":
        return {"pixel_values": torch.randn(d.batch, 1, 8, 8, generator=generator)}
    ids = torch.randint(3, 32, (d.batch, d.length), generator=generator).masked_fill(~d.real, 0)
    batch: dict[str, Any] = {"input_ids": ids}
    if d.name == "T5":
        batch["decoder_input_ids"] = torch.randint(3, 32, (d.batch, d.source_length), generator=generator)
    if d.mask != "none" and not d.cache:
        batch["attention_mask"] = d.real if d.mask == "bool" else d.real.long()
    if d.packed:
        batch["position_ids"] = torch.cat([torch.arange(n) for n in d.packed])[None]
        batch["use_cache"] = False  # with a cache, transformers does not take them for documents
    return batch


def _with_cache(d: FamilyDescription, batch: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    if not d.cache:
        return batch
    past = torch.randint(3, 32, (d.batch, d.cache), generator=torch.Generator().manual_seed(d.seed + 1))
    with torch.no_grad():
        filled = model(input_ids=past, use_cache=True).past_key_values
    return {**batch, "past_key_values": filled}


def truth_of_family(d: FamilyDescription) -> list[Truth]:
    """What the eager twin says of its attention, in float64."""
    twin = _build(d, "eager")
    with torch.no_grad():
        output = twin(**_with_cache(d, _batch(d), twin), output_attentions=True)
    if d.name != "T5":
        path, causal, _ = _FORMS[d.name]
        return [_truth(d, path.format(i), i, p, causal) for i, p in enumerate(output.attentions)]
    result = []
    for i in range(d.layers):
        result.append(
            _truth(d, f"encoder.block.{i}.layer.0.SelfAttention", i, output.encoder_attentions[i], False)
        )
        inner = output.decoder_attentions[i], output.cross_attentions[i]
        result.append(_truth(d, f"decoder.block.{i}.layer.0.SelfAttention", i, inner[0], True))
        result.append(_truth(d, f"decoder.block.{i}.layer.1.EncDecAttention", i, inner[1], False, cross=True))
    return result


def _truth(
    d: FamilyDescription, path: str, index: int, p: Tensor, causal: bool, cross: bool = False
) -> Truth:
    """Numbers of one layer's probabilities [B, H, Nq, Nk], of which the hidden ones must be 0."""
    batch, heads, queries, keys = p.shape
    decoder = path.startswith("decoder.block")
    real = torch.ones(batch, queries, dtype=torch.bool) if decoder else d.real
    key_real = torch.ones(batch, keys, dtype=torch.bool) if (decoder and not cross) or d.cache else d.real
    documents, key_documents = real.long(), key_real.long()
    if d.packed:
        documents = key_documents = torch.repeat_interleave(torch.tensor([1, 2]), torch.tensor(d.packed))[
            None
        ]
    if d.name == "ViT":
        documents = key_documents = torch.ones(batch, queries, dtype=torch.long)
    offset = 0 if cross else keys - queries
    i, j = torch.arange(queries)[:, None] + offset, torch.arange(keys)[None]
    visible = (key_documents > 0)[:, None, None] & torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        visible = visible & (j <= i)
    if d.window:
        visible = visible & (i - j < d.window)
    if d.packed:
        visible = visible & (documents[:, None, :, None] == key_documents[:, None, None])
    visible = visible.expand(p.shape)
    rows = (documents > 0)[:, None].expand(p.shape[:3])
    p = p.double()
    lost = 1 - torch.where(visible, p, 0.0).sum(-1)[rows]
    assert lost.abs().max() < 1e-3, f"the harness takes keys for hidden that are not: {d!r}"
    p = torch.where(visible, p, 0.0)
    facts = Facts(p / p.sum(-1, keepdim=True), visible, documents, key_documents, offset, cross)
    return Truth(path, 0, index, cross, heads, numbers(facts))


def check_family(d: FamilyDescription) -> None:
    """Build, measure and compare; see :func:`harness.checking.check`."""
    truth = truth_of_family(d)
    model = _build(d, d.implementation)
    faults = compare(measured(model, _with_cache(d, _batch(d), model)), truth)
    if faults:
        raise Wrong("\n".join([repr(d), *faults[:8]]))
