"""The events that a tap shows: an attention call, and a run of a layer's block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_geo.kernels import STATISTICS, AttentionProblem
from lightning_geo.observe.packing import Packing, Portion

__all__ = ["AttentionCall", "BlockCall", "CallKey", "HeadSlice"]


class CallKey(NamedTuple):
    """Identifies an attention call of a forward pass; each becomes a layer of a stack.

    Args:
        module: Path of the module that computes it, from the observed model.
        repeat: How often the module's layer ran before in the same forward pass (ALBERT shares one layer).
        cross: Whether keys and queries come from different sequences.
        part: Number among several attentions of the module in one run (differential attention).
    """

    module: str
    repeat: int = 0
    cross: bool = False
    part: int = 0


@dataclass(frozen=True)
class HeadSlice:
    """The heads of a layer that this process has: all, or the ``index``-th of ``count`` equal slices."""

    index: int = 0
    count: int = 1


@dataclass
class AttentionCall:
    """One computed attention, as the model computed it (after RoPE, QK-norm and cache).

    Args:
        query: [B, H, Nq, D].
        key: [B, Hk, Nk, D], Hk dividing H.
        value: [B, Hk, Nk, Dv].
        output: Per-head outputs [B, H, Nq, Dv].
        masks: Masks that hide or bias scores, [B or 1, H or 1, Nq or 1, Nk or 1]: bool (True = attend),
            additive float, or ``BlockMask``. With ``scores``, which include every bias, bool masks only.
        scores: [B, H, Nq, Nk], the softmax's input in models that write attention out; query, key, value and
            output may then be ``None`` (unknown).
        is_causal: Whether keys after a query's own are hidden: those after ``offset + i`` from query i.
        offset: Number of keys in front of query 0's own (a cache, a prefix); ``None`` if queries have no
            position among the keys, as in cross-attention, or if it is unknown.
        window: ``(left, right)``: query i sees keys ``offset + i - left`` to ``offset + i + right``; -1 is no
            limit. ``None`` for all keys.
        scale: Factor of the dot products; ``None`` for 1/sqrt(D).
        softcap: Scores become ``softcap * tanh(score / softcap)`` before masks; ``None`` for none.
        sinks: [H], the logit of a key-less column per head (gpt-oss).
        cross: Whether keys and queries come from different sequences.
        query_mask: [B, Nq] bool, True for real tokens; ``None`` if unknown.
        key_mask: [B, Nk] bool, likewise.
        special: [B, Nk] bool, special tokens among the keys.
        ids: [B, N], input ids of the tokens of a self-attention; ``None`` if no running module has them.
        has_padding_mask: Whether ``key_mask`` is the padding mask that the model was called with. Set for
            observers that ask for it (``reads_padding``).
        padding: [B, Nk] bool, padding by its token id where the model was called without a mask; likewise.
        sequence_first: Whether the module's hidden states are [N, B, d].
        parameters: role -> weight ``[features, d]`` (of the output: ``[d, features]``), if the function takes
            them as arguments.
        inputs: role -> hidden states ``[B, N, d]`` that these weights are multiplied with.
        cumulative: Cumulative lengths of the queries' and the keys' documents, if the attention function
            takes them and hides other documents.
        restarts: Position ids ``[1, N]`` from which the attention function makes such documents itself.
        documents: The documents in its rows; ``None`` if every row is one sequence.
        portion: The part of a packed call that this call is; ``None`` for a call that was not divided.
        slice: Which of the layer's heads these are.
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
    ids: Tensor | None = None
    has_padding_mask: bool = False
    padding: Tensor | None = None
    sequence_first: bool = False
    parameters: dict[str, Tensor] | None = None
    inputs: dict[str, Tensor] | None = None
    cumulative: tuple[Tensor, Tensor] | None = None
    restarts: Tensor | None = None
    documents: Packing | None = None
    portion: Portion | None = None
    slice: HeadSlice = field(default_factory=HeadSlice)

    def problem(
        self, requested: frozenset[str] = frozenset(STATISTICS), rows: Tensor | None = None
    ) -> AttentionProblem:
        """Return the problem that kernels compute from queries, keys and masks; ``scores`` are ignored.

        Args:
            requested: Statistics to compute.
            rows: ``[B, R]`` int64, the query rows to measure; None for all.

        Raises:
            TypeError: If an observed argument is no tensor of the expected type.
            ValueError: If shapes or devices do not fit.
        """
        assert self.query is not None
        assert self.key is not None
        return AttentionProblem.of(
            self.query,
            self.key,
            scale=self.scale,
            softcap=self.softcap,
            masks=self.masks,
            offset=self.offset or 0,
            window=self.window,
            is_causal=self.is_causal,
            query_mask=self.query_mask,
            sinks=self.sinks,
            special=self.special,
            rows=rows,
            requested=requested,
        )

    @property
    def width(self) -> int:
        """Features of the outputs of all of its heads; 0 where these are unknown."""
        return 0 if self.output is None else self.output.shape[1] * self.output.shape[3]

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
        """Number and size of the heads of every role; 0 if unknown."""
        roles = (self.query, self.key, self.value, self.output)
        return tuple(n for x in roles for n in ((0, 0) if x is None else (x.shape[1], x.shape[3])))

    @property
    def device(self) -> torch.device:
        """Device of its tensors."""
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
