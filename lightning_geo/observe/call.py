"""What a tap yields: one attention call, and one run of a layer's block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_geo.observe.packing import Packing, Portion

__all__ = ["AttentionCall", "BlockCall", "CallKey"]


class CallKey(NamedTuple):
    """Which attention call of a forward it is: what becomes a layer of a stack.

    Args:
        module: Path of the module that computes it, from the observed model.
        repeat: How often that module's layer ran before in the same forward (ALBERT shares one).
        cross: Whether keys come from another sequence than queries.
        part: Which of several attentions that the module computes in one run (differential attention).
    """

    module: str
    repeat: int = 0
    cross: bool = False
    part: int = 0


@dataclass
class AttentionCall:
    """One computed attention, as the model computed it (after RoPE, QK-norm and cache).

    Args:
        query: [B, H, Nq, D].
        key: [B, Hk, Nk, D], Hk dividing H.
        value: [B, Hk, Nk, Dv].
        output: Per-head outputs [B, H, Nq, Dv].
        masks: What hides or biases scores [B or 1, H or 1, Nq or 1, Nk or 1]: bool (True = attend), additive
            float, or ``BlockMask``. Beside ``scores``, which hold every bias, bool masks alone.
        scores: [B, H, Nq, Nk] as given to softmax, from models that compute it by hand; then
            query, key, value and output may be ``None`` (they could not be told).
        is_causal: Whether keys after a query's own are hidden: those after ``offset + i`` from query i.
        offset: Keys before that of query 0, which are in front of the sequence (a cache, a prefix); ``None``
            where queries have no place among the keys: in cross-attention, or where nothing tells it.
        cross: Whether keys come from another sequence than queries.
        query_mask: [B, Nq] bool, real tokens; ``None`` where nothing says.
        key_mask: [B, Nk] bool, likewise.
        special: [B, Nk] bool, special tokens among the keys.
        sequence_first: Whether the module's hidden states are [N, B, d].
        parameters: role -> weight ``[features, d]`` (of the output: ``[d, features]``), where the call itself
            was given them.
        inputs: role -> what these were multiplied with ``[B, N, d]``.
        cumulative: Cumulative lengths of the queries' and the keys' documents, where the attention function
            was given them and lets no document see another.
        restarts: Position ids ``[1, N]`` from which the attention function makes such documents itself.
        documents: The documents that its rows hold; ``None`` where every row is one sequence.
        portion: Which of a packed call's documents this is; ``None`` for a call as it was made.
    """

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    output: Tensor | None
    masks: tuple[Any, ...] = ()
    scores: Tensor | None = None
    is_causal: bool = False
    offset: int | None = 0
    window: tuple[int, int] | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    cross: bool = False
    query_mask: Tensor | None = None
    key_mask: Tensor | None = None
    special: Tensor | None = None
    sequence_first: bool = False
    parameters: dict[str, Tensor] | None = None
    inputs: dict[str, Tensor] | None = None
    cumulative: tuple[Tensor, Tensor] | None = None
    restarts: Tensor | None = None
    documents: Packing | None = None
    portion: Portion | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Batch, queries and keys."""
        if self.scores is not None:
            return self.scores.shape[0], self.scores.shape[2], self.scores.shape[3]
        assert self.query is not None
        assert self.key is not None
        return self.query.shape[0], self.query.shape[2], self.key.shape[2]

    @property
    def heads(self) -> int:
        """Heads of the queries."""
        tensor = self.query if self.scores is None else self.scores
        assert tensor is not None
        return tensor.shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number and size of the heads of every role, 0 where it could not be told."""
        roles = (self.query, self.key, self.value, self.output)
        return tuple(n for x in roles for n in ((0, 0) if x is None else (x.shape[1], x.shape[3])))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        tensor = self.query if self.scores is None else self.scores
        assert tensor is not None
        return tensor.device


@dataclass
class BlockCall:
    """One run of a layer: its input, its output, and the attention calls within."""

    name: str
    keys: tuple[CallKey, ...]
    input: Tensor | None
    output: Tensor | None
    mask: Tensor | None
