"""Attention with a residual around it, in each way that it is computed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel

from run_machine.descriptions import HEADS, VOCABULARY, WIDTH

__all__ = ["ATTENTIONS", "Attention"]


class Attention(nn.Module):
    """Two heads with a residual around them; notes what it is given where ``seen`` is a list."""

    seen: list[tuple[Attention, Tensor, Tensor]] | None = None

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.append((self, x.detach().clone(), visible.clone()))
        return x + self.attend(x, visible)

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        raise NotImplementedError

    def projections(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of queries, keys and values, in rows."""
        raise NotImplementedError

    def entropies(self, x: Tensor, visible: Tensor) -> list[Tensor]:
        """[head, row] entropies of the visible rows of each sequence, in float64 and dense."""
        weight, bias = (p.detach().double() for p in self.projections())
        q, k = (x.double() @ weight.T + bias)[..., : 2 * WIDTH].unflatten(-1, (2, HEADS, -1)).unbind(-3)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(WIDTH / HEADS)
        p = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)
        rows = -torch.special.xlogy(p, p).sum(-1)
        return [mine[:, real] for mine, real in zip(rows, visible, strict=True)]


class Projected(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def projections(self) -> tuple[Tensor, Tensor]:
        return self.qkv.weight, self.qkv.bias

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.mix(q, k, v, visible[:, None, None]).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class ByHand(Projected):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) @ v


class Packaged(Attention):
    """``nn.MultiheadAttention``, with the batch on the first axis or the second."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.batch_first = batch_first

    def projections(self) -> tuple[Tensor, Tensor]:
        return self.mha.in_proj_weight, self.mha.in_proj_bias

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.mha(x, x, x, key_padding_mask=~visible, need_weights=False)[0]
        return y if self.batch_first else y.transpose(0, 1)  # type: ignore[no-any-return]


class Checkpointed(Projected):
    """Runs again in backward."""

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        return checkpoint(super().attend, x, visible, use_reentrant=False)  # type: ignore[no-any-return]


class Bert(Attention):
    """A BERT of one layer as transformers has it; its entropies are not checked."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(
            BertConfig(
                vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS,
                intermediate_size=WIDTH, max_position_embeddings=16,
            ),
            add_pooling_layer=False,
        )  # fmt: skip

    def attend(self, x: Tensor, visible: Tensor) -> Tensor:
        return self.bert(inputs_embeds=x, attention_mask=visible.long()).last_hidden_state  # type: ignore[no-any-return]


ATTENTIONS: dict[str, Callable[[], Attention]] = {
    "sdpa": Projected,
    "by hand": ByHand,
    "packaged": lambda: Packaged(batch_first=True),
    "sequence first": lambda: Packaged(batch_first=False),
    "checkpointed": Checkpointed,
    "bert": Bert,
}
