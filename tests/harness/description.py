"""What a model of the harness is like: a flat, printable description that everything else is derived from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["BY_HAND", "ENTROPY", "MODULES", "PATTERN", "SIMPLE_TREES", "WINDOWS", "Description"]

ENTROPY = ("entropy", "normalized_entropy", "concentration", "max_probability", "max_logit", "key_entropy")
PATTERN = (
    "self_mass", "previous_mass", "next_mass", "first_mass", "backward_mass", "forward_mass",
    "attention_distance",
)  # fmt: skip

#: Ways to compute attention with a softmax that the model itself calls.
BY_HAND = ("matmul", "einsum", "baddbmm")
#: Ways through ``nn.MultiheadAttention``.
MODULES = ("mha", "encoder", "decoder")
#: Axes with windows beside heads.
WINDOWS = ("windows_bwhnd", "windows_bhwnd")
#: Trees in which layer i is item i of one list, or attribute i.
SIMPLE_TREES = (
    "list", "sequential", "forward", "checkpoint", "checkpoint_reentrant", "checkpoint_forward", "scripted",
    "compiled", "attributes", "repeated",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Description:
    """One drawn model and its inputs; :func:`harness.models.build` needs nothing else.

    Args:
        how: sdpa, matmul, einsum, baddbmm, flex, mha, or torch's encoder and decoder.
        softmax: By hand: functional, torch, method, float32, module, sequential.
        scale: default; given (sdpa: a number; by hand: the product is divided); query: scaled beforehand.
        between: By hand: sequential computes a position bias in an ``nn.Sequential`` before softmax.
        axes: bhnd, bnhd, folded [B·H, N, D], folded_h_major [H·B, N, D], single [B, N, D], list (one module a
            head), heads_first [H, B, N, D], windows_bwhnd, windows_bhwnd, grouped [B, Hk, G, N, D].
        declared: The attribute that says how many heads there are.
        projection: separate linear modules, or one fused.
        grouping: How keys come to as many heads as queries: none, repeat, expand, enable_gqa.
        structure: full, causal, window, sparse (rows need not see themselves), shifted (Swin's last window).
        lengths: Real tokens of each sequence, where ``padding`` is not none.
        told: What the model is called with: none, int, bool (``attention_mask``), key_padding_mask, lengths.
        values: What hides: none, bool, eye (bool or eye), masked_fill, where, inf, min, a number,
            is_causal, upper_left, lower_right.
        shape: Of the mask: qk, 11qk, b11k, b1qk, bhqk.
        padding_mask: ``nn.MultiheadAttention``: whether padding is in key_padding_mask.
        bias: none, or alibi, whose steepest slope is 16 a token.
        packed: none, positions (``position_ids`` start again), documents (``attention_mask`` counts them).
        documents: Lengths of the documents in each row.
        keys: own, prefix (learned), cache, bias_kv, zero_attn.
        extra: How many keys stand in front.
        source: self, normed (queries alone are normalised), memory_position, memory_keyword.
        self_too: Whether layers with memory also attend to themselves.
        parts: one, differential, joint (two softmaxes subtracted before values), discarded, channels (every
            second layer), channels_only.
        tree: Where modules hang and how they are called.
        inputs: embeddings, or ids.
    """

    how: str = "sdpa"
    softmax: str = "functional"
    scale: str = "default"
    between: str = "none"
    axes: str = "bhnd"
    declared: str = "num_heads"
    projection: str = "separate"
    grouping: str = "none"
    heads: int = 2
    kv_heads: int = 2
    head_size: int = 8
    batch: int = 2
    length: int = 6
    windows: int = 1
    layers: int = 2
    structure: str = "full"
    padding: str = "none"
    lengths: tuple[int, ...] = ()
    told: str = "none"
    values: str = "none"
    shape: str = "qk"
    padding_mask: bool = False
    bias: str = "none"
    packed: str = "none"
    documents: tuple[tuple[int, ...], ...] = ()
    keys: str = "own"
    extra: int = 0
    source: str = "self"
    self_too: bool = True
    memory_length: int = 0
    memory_lengths: tuple[int, ...] = ()
    parts: str = "one"
    tree: str = "list"
    inputs: str = "embeddings"
    batch_first: bool = True
    need_weights: bool = False
    norm_first: bool = False
    dtype: str = "float32"
    seed: int = 0

    def __repr__(self) -> str:
        told = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if self._differs(f))
        return f"Description({', '.join(told)})"

    def _differs(self, one: Any) -> bool:
        return bool(getattr(self, one.name) != one.default)

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_size

    @property
    def crosses(self) -> bool:
        """Whether there is attention to a memory."""
        return self.source.startswith("memory")

    @property
    def window_length(self) -> int:
        """Queries of one attention."""
        return self.length // self.windows

    @property
    def tolerance(self) -> float:
        """Largest difference of a number, relative to 1 or to itself where it is larger.

        In bfloat16 a model's own scores have 8 bits, and what it computes by hand is softmax of these, while
        the truth is of the exact products.
        """
        return 2e-4 if self.dtype != "bfloat16" else 0.1 if self.how in BY_HAND else 2e-2

    @property
    def blind(self) -> bool:
        """Whether rows of padding may see nothing at all."""
        return self.padding != "none" and (
            self.structure == "window" or (self.structure == "causal" and self.padding == "left")
        )

    def is_channels(self, layer: int) -> bool:
        """Whether that layer attends from channel to channel: no attention between tokens."""
        return self.parts == "channels_only" or (self.parts == "channels" and layer % 2 == 1)

    def allowed_absent(self) -> frozenset[str]:
        """Metrics that may be left out, with a reason: where nothing in the model decides them."""
        everything = frozenset((*ENTROPY, *PATTERN))
        if self.axes == "folded_h_major" and 1 not in (self.heads, self.batch):
            return everything
        if self.declared == "none" and self.axes not in ("bhnd", "bnhd") and self.how not in MODULES:
            return everything
        if self.axes == "heads_first" and self.batch == self.heads:
            return everything
        if self.axes in WINDOWS and self.windows == self.heads:
            return everything
        if self.parts == "joint":
            return everything
        if self.how == "flex" and self.bias != "none":  # a score_mod, which is any function
            return everything
        if self.keys in ("bias_kv", "zero_attn"):
            return frozenset(PATTERN)
        if self.keys == "prefix" and self.structure != "causal":  # in front or behind: keys alone do not tell
            return frozenset(PATTERN)
        return frozenset()
