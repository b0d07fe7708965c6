"""What describes a model family, and what its models are fed. Nothing here imports lightning_geo."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

BATCH, LENGTH, SOURCE_LENGTH, VOCABULARY, PAD = 3, 12, 10, 64, 1
# one full sequence, one middling, one short; the shortest still has rows with several visible keys
LENGTHS = (1.0, 0.75, 0.42)
SCALE = 8**-0.5

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Stack:
    """One stack of a family and where the reference finds it.

    Args:
        name: As in the record.
        blocks: Path of the module list that holds the layers, or of a list of such lists.
        attention: Path of the attention module inside a layer.
        attentions: Field of the eager model's output with one [B, H, Nq, Nk] tensor per layer;
            empty where the output does not have all of them: then the attention modules' own output is taken.
        tokens: Batch entry that marks valid query tokens; empty if the family has no padding here.
        keys: The same for keys.
        causal: Whether a query sees no later key.
        window: How many keys back (itself included) a query sees in windowed layers.
        windowed: Which layers have the window.
        layers: Number of layers in the record.
        projections: Paths, inside the attention module, of what makes query, key and value ("" where that
            cannot be told from its output); a single one makes all three, a fourth the bias of the scores.
        fused: How that one lays them out: a third each, head by head, or all queries and one key and value.
        prescaled: What the model multiplies query and key with before their product.
        scale: What the model multiplies the product with; ``None`` where scores have further terms.
        biased: Whether the attention module returns a position bias before its probabilities.
        softcap: Of the scores, 0 for none.
        sequence_first: Whether hidden states are [N, B, d].
        head_size: Features of a head.
    """

    name: str
    blocks: str
    attention: str
    attentions: str = "attentions"
    tokens: str = "attention_mask"
    keys: str = "attention_mask"
    causal: bool = False
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    layers: int = 2
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused: Literal["thirds", "interleaved", "multi-query"] = "thirds"
    prescaled: tuple[float, float] = (1.0, 1.0)
    scale: float | None = SCALE
    biased: bool = False
    softcap: float = 0.0
    sequence_first: bool = False
    head_size: int = 8

    @property
    def is_cross(self) -> bool:
        return self.tokens != self.keys


@dataclass(frozen=True)
class Family:
    """A model family: how to build it, feed it and read it."""

    name: str
    build: Callable[[str], nn.Module]
    batch: Callable[[str], Batch]
    stacks: tuple[Stack, ...]
    implementations: tuple[str, ...] = ("sdpa", "eager")
    paddings: tuple[str, ...] = ("none", "right", "left")

    def __post_init__(self) -> None:
        if (
            int(transformers.__version__.partition(".")[0]) < 5
        ):  # there some models have eager attention alone
            kept = tuple(name for name in self.implementations if self._is_built(name))
            object.__setattr__(self, "implementations", kept)

    def _is_built(self, implementation: str) -> bool:
        try:
            self.build(implementation)
        except ValueError:
            return False
        return True


def _valid(length: int, padding: str) -> Tensor:
    """Marks valid tokens: [B, length], int64."""
    counts = torch.tensor([round(length * share) for share in LENGTHS])
    position = torch.arange(length)
    if padding == "left":
        position = position.flip(0)
    return (position < counts[:, None]).long()


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _tokens(length: int, padding: str, name: str = "input_ids", mask: str = "attention_mask") -> Batch:
    ids = torch.randint(5, VOCABULARY, (BATCH, length), generator=_generator(name))
    if padding == "none":
        return {name: ids}
    valid = _valid(length, padding)
    return {name: torch.where(valid.bool(), ids, PAD), mask: valid}


def text(padding: str) -> Batch:
    return _tokens(LENGTH, padding)


def text_to_text(padding: str) -> Batch:
    # decoders with learned positions give no meaning to left padding, but their attention masks do
    target = _tokens(LENGTH, padding, "decoder_input_ids", "decoder_attention_mask")
    return {**_tokens(SOURCE_LENGTH, padding), **target}


def audio(padding: str) -> Batch:
    frames = torch.randn(BATCH, 8, 2 * SOURCE_LENGTH, generator=_generator("audio"))
    return {
        "input_features": frames,
        **_tokens(LENGTH, padding, "decoder_input_ids", "decoder_attention_mask"),
    }


def image(padding: str, size: int = 12) -> Batch:
    return {"pixel_values": torch.randn(BATCH, 3, size, size, generator=_generator("image"))}


def text_and_image(padding: str) -> Batch:
    return {**text(padding), **image(padding)}


def floats(padding: str) -> Batch:
    x = torch.randn(BATCH, LENGTH, 32, generator=_generator("floats"))
    return {"x": x} if padding == "none" else {"x": x, "attention_mask": _valid(LENGTH, padding)}


def two_floats(padding: str) -> Batch:
    masks = {k: v for k, v in text_to_text(padding).items() if k.endswith("mask")}
    source = torch.randn(BATCH, SOURCE_LENGTH, 32, generator=_generator("source"))
    return {"source": source, "target": floats("none")["x"], **masks}


def randomize(model: nn.Module) -> nn.Module:
    """Redraw every parameter, wide enough that no head attends uniformly and none is one-hot."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=_generator(name))
            if id(parameter) in embeddings:
                parameter.copy_(noise)
            elif parameter.ndim >= 2:
                parameter.copy_(0.25 * noise)  # width 32: a gain of about 1.4
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise if name.endswith("bias") else 1.0 + 0.1 * noise)
    return model.eval()


def auto(config: str, **arguments: Any) -> Callable[[str], nn.Module]:
    def build(implementation: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            made = getattr(transformers, f"{config}Config")(**arguments)
            # the experts' fused matmul knows no float64
            made._experts_implementation = "eager"
            kind = transformers.AutoModel._model_mapping[type(made)]
            if implementation == "sdpa" and not getattr(kind, "_supports_sdpa", True):
                implementation = "eager"  # T5 in transformers 4
            return randomize(transformers.AutoModel.from_config(made, attn_implementation=implementation))

    return build
