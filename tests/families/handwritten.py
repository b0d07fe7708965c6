"""Models without transformers: torch's own layers, and one that writes attention out in three ways."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention with 4 heads; ``eager`` and ``einsum`` write the softmax out."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.implementation = implementation
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        q, k, v = (t.unflatten(-1, (4, 8)) for t in self.qkv(x).chunk(3, dim=-1))  # [B, N, H, D]
        if self.implementation == "sdpa":
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            # positional arguments: as in code in the wild
            heads = F.scaled_dot_product_attention(q, k, v, mask, 0.0, mask is None)
            return self.out(heads.transpose(1, 2).flatten(2)), None
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if mask is None else mask
        if self.implementation == "einsum":
            scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(8)
            p = torch.nan_to_num(self.softmax(scores.masked_fill(~mask, -torch.inf)))
            return self.out(torch.einsum("bhij,bjhd->bihd", p, v).flatten(2)), p
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.mT / math.sqrt(8)).masked_fill(~mask, -torch.inf)
        p = torch.nan_to_num(scores.softmax(-1))  # rows of left padding see nothing
        return self.out((p @ v).transpose(1, 2).flatten(2)), p


class Block(nn.Module):
    """Pre-norm."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(32), Attention(implementation)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        attended, probabilities = self.attention(self.norm(x), mask)
        x = x + attended
        return x + self.mlp(x), probabilities


class Model(nn.Module):
    """Two blocks; the mask is boolean and holds causality and padding of keys and of queries."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(implementation) for _ in range(2))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        mask = None
        if attention_mask is not None:
            valid = attention_mask.bool()
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & valid[:, None, None]
        attentions = []
        for block in self.blocks:
            x, probabilities = block(x, mask)
            attentions.append(probabilities)
        return SimpleNamespace(last_hidden_state=x, attentions=attentions)


class Telling(nn.MultiheadAttention):
    """torch's attention asked for its weights, which it keeps; that also keeps it off every fast path."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        wanted = {"need_weights": True, "average_attn_weights": False}
        result, self.probabilities = super().forward(*args, **{**kwargs, **wanted})
        return result, self.probabilities


def _tell(model: nn.Module) -> None:
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = Telling


def _told(layers: nn.ModuleList, name: str) -> list[Tensor | None]:
    return [getattr(layer.get_submodule(name), "probabilities", None) for layer in layers]


class Encoder(nn.Module):
    """``nn.TransformerEncoder``; masks as in transformers (1 = token)."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        if implementation == "eager":
            _tell(self)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        padding = None if attention_mask is None else attention_mask == 0
        self.encoder(x, src_key_padding_mask=padding)
        return SimpleNamespace(attentions=_told(self.encoder.layers, "self_attn"))


class Transformer(nn.Module):
    """``nn.Transformer``, [N, B, d] as by default: a causal decoder looks at an encoder."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.transformer = nn.Transformer(32, 4, 2, 2, dim_feedforward=48, dropout=0.0)
        if implementation == "eager":
            _tell(self)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> SimpleNamespace:
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        source_padding, target_padding = (
            None if mask is None else mask == 0 for mask in (attention_mask, decoder_attention_mask)
        )
        self.transformer(
            source.transpose(0, 1),
            target.transpose(0, 1),
            tgt_mask=later,
            src_key_padding_mask=source_padding,
            tgt_key_padding_mask=target_padding,
            memory_key_padding_mask=source_padding,
        )
        encoder, decoder = self.transformer.encoder.layers, self.transformer.decoder.layers
        return SimpleNamespace(
            encoder_attentions=_told(encoder, "self_attn"),
            decoder_attentions=_told(decoder, "self_attn"),
            cross_attentions=_told(decoder, "multihead_attn"),
        )
