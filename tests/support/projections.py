"""Where output projections are in the families, and what silencing a head means for their weights.

Written down by hand: nothing here imports lightning_geo, whose heads are told in another way.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from families.models import FAMILIES

#: family -> (stack, path of the layer's output projection; * is the layer)
PROJECTIONS = {
    "bert": [("encoder", "encoder.layer.*.attention.output.dense")],
    "distilbert": [("transformer", "transformer.layer.*.attention.out_lin")],
    "modernbert": [("layers", "layers.*.attn.Wo")],
    "deberta_v2": [("encoder", "encoder.layer.*.attention.output.dense")],
    "mpnet": [("encoder", "encoder.layer.*.attention.attn.o")],
    "gpt2": [("h", "h.*.attn.c_proj")],
    "gpt_neo": [("h", "h.*.attn.attention.out_proj")],
    "bloom": [("h", "h.*.self_attention.dense")],
    "falcon": [("h", "h.*.self_attention.dense")],
    "gpt_neox": [("layers", "layers.*.attention.dense")],
    "llama": [("layers", "layers.*.self_attn.o_proj")],
    "gemma2": [("layers", "layers.*.self_attn.o_proj")],
    "gpt_oss": [("layers", "layers.*.self_attn.o_proj")],
    "t5": [
        ("encoder", "encoder.block.*.layer.0.SelfAttention.o"),
        ("decoder", "decoder.block.*.layer.0.SelfAttention.o"),
        ("decoder.cross", "decoder.block.*.layer.1.EncDecAttention.o"),
    ],
    "bart": [
        ("encoder", "encoder.layers.*.self_attn.out_proj"),
        ("decoder", "decoder.layers.*.self_attn.out_proj"),
        ("decoder.cross", "decoder.layers.*.encoder_attn.out_proj"),
    ],
    "vit": [("layers", "layers.*.attention.o_proj")],
    "handwritten": [("blocks", "blocks.*.attention.out")],
}
#: family, implementation, all that can be differentiated on a CPU
CASES = [
    (name, implementation)
    for name in PROJECTIONS
    for implementation in FAMILIES[name].implementations
    if implementation != "flex_attention"
]
HEADS = 4


def weight_of(model: nn.Module, path: str, layer: int) -> nn.Parameter:
    """Weight of a layer's output projection."""
    return model.get_submodule(path.replace("*", str(layer))).weight  # type: ignore[return-value]


def by_head(model: nn.Module, path: str, layer: int, values: Tensor, heads: int = HEADS) -> Tensor:
    """What a tensor like the projection's weight holds for each head's features: [H, out, head size]."""
    module = model.get_submodule(path.replace("*", str(layer)))
    columns = values.T if isinstance(module, Conv1D) else values
    return columns.unflatten(1, (heads, -1)).transpose(0, 1)
