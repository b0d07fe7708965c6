"""A pretrained BERT of real size, on real texts: what random ones leave out."""

from __future__ import annotations

import functools

import torch
from torch import nn
from transformers import AutoModel

from families.family import Batch, Family, Stack
from families.models import FAMILIES
from texts import packaged_bert, tokenizer_of

#: The second one is padded to the first's length.
TEXTS = (
    "Shares in the airline rose by four per cent on Tuesday after it said that passenger numbers had "
    "recovered faster than expected, although fuel prices remain a worry for the rest of the year.",
    "The striker scored twice before half-time, then limped off.",
)


def _build(implementation: str) -> nn.Module:
    model: nn.Module = AutoModel.from_pretrained(packaged_bert(), attn_implementation=implementation)
    return model.eval()


@functools.cache
def _tokens() -> Batch:
    encoded = tokenizer_of(packaged_bert())(list(TEXTS), padding=True, return_tensors="pt")
    return {name: torch.as_tensor(encoded[name]) for name in ("input_ids", "attention_mask")}


PACKAGED = Family(
    "packaged_bert",
    _build,
    lambda padding: dict(_tokens()),
    (
        Stack(
            "encoder", "encoder.layer", "attention.self", projections=("query", "key", "value"), layers=6,
            scale=32**-0.5, head_size=32,
        ),
    ),
    paddings=("right",),
)  # fmt: skip

#: The tiny models, and this one.
EVERY = {**FAMILIES, PACKAGED.name: PACKAGED}
