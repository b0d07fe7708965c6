"""Real tokens, visible pairs, biases and documents of a description; and masks as models write them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.description import WINDOWS, Description

__all__ = ["Plan", "arrange_mask", "encode", "plan_of"]


@dataclass
class Plan:
    """What holds for every self-attention of a model, and for every one that crosses.

    Args:
        real: [B, N] bool, real tokens.
        structure: [B or 1, 1, Nq, Nk] bool, causality, windows, documents: all but padding.
        bias: [1, H, Nq, Nk] float, or None.
        documents: [B, N], the document of each token from 1 on, 0 for padding; None where rows are sequences.
        memory_real: [B, M] bool.
        offset: Key position of the first query.
    """

    real: Tensor
    structure: Tensor
    bias: Tensor | None
    documents: Tensor | None
    memory_real: Tensor
    offset: int

    def real_keys(self, keys: int) -> Tensor:
        """[B, Nk] bool: keys in front of the sequence, and behind it, are real."""
        front = self.real.new_ones(len(self.real), self.offset)
        behind = self.real.new_ones(len(self.real), keys - self.offset - self.real.shape[1])
        return torch.cat([front, self.real, behind], 1)


def plan_of(d: Description) -> Plan:
    """Derive it from the description alone."""
    sequences, length = d.batch * d.windows, d.window_length
    real = (
        _real(d.lengths, d.batch, length, d.padding) if d.windows == 1 else torch.ones(sequences, length) > 0
    )
    documents = None
    if d.packed != "none":
        documents = torch.zeros(d.batch, length, dtype=torch.long)
        for row, lengths in zip(documents, d.documents, strict=True):
            numbers = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))
            row[: len(numbers)] = numbers
        real = documents > 0
    return Plan(
        real=real,
        structure=_structure(d, real, documents),
        bias=_alibi(d) if d.bias == "alibi" else None,
        documents=documents,
        memory_real=_real(d.memory_lengths, d.batch, d.memory_length, "right"),
        offset=d.extra,
    )


def _real(lengths: tuple[int, ...], batch: int, length: int, side: str) -> Tensor:
    """[B, N] bool."""
    position = torch.arange(length)[None]
    if not lengths or side == "none":
        return torch.ones(batch, length, dtype=torch.bool)
    count = torch.tensor(lengths)[:, None]
    return position < count if side == "right" else position >= length - count


def _structure(d: Description, real: Tensor, documents: Tensor | None) -> Tensor:
    queries, keys = d.window_length, d.window_length + d.extra
    i, j = torch.arange(queries)[:, None] + d.extra, torch.arange(keys)[None]
    visible = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    if d.structure == "causal":
        visible = visible & (j <= i)
    elif d.structure == "window":
        visible = visible & ((j - i).abs() <= 2)
    elif d.structure == "sparse":
        visible = _sparse(d, real)
    elif d.structure == "shifted":
        # the last window holds two groups that a shift brought together, as in Swin
        group = (torch.arange(queries) < (queries + 1) // 2).expand(d.windows, -1).clone()
        group[:-1] = True
        visible = (group[:, :, None] == group[:, None])[:, None]
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None])
    return visible


def _sparse(d: Description, real: Tensor) -> Tensor:
    """Random keys: no row need see itself, yet another real row sees every real key."""
    generator = torch.Generator().manual_seed(d.seed)
    batch, length = real.shape
    visible = torch.rand(batch, length, length, generator=generator) < 0.4
    for b in range(batch):
        rows = real[b].nonzero().flatten()
        visible[b, rows, rows.roll(1)] = True  # in a circle, so each is seen by its neighbour
        visible[b, ~real[b]] = visible[b, rows[0]].clone()
    return visible[:, None]


def _alibi(d: Description) -> Tensor:
    """[1, H, Nq, Nk], 16, 4, 1, … a token: further than -100 away nothing is hidden."""
    slopes = 16.0 * 0.25 ** torch.arange(d.heads)
    i, j = torch.arange(d.window_length)[:, None] + d.extra, torch.arange(d.window_length + d.extra)[None]
    return (-slopes[:, None, None] * (i - j).abs())[None]


def encode(visible: Tensor, bias: Tensor | None, d: Description, dtype: torch.dtype) -> Tensor | None:
    """Write visible pairs [B or 1, H or 1, Nq or 1, Nk] as the description's kind of mask.

    Returns:
        A bool or additive mask of the description's shape; None where the attention needs none.
    """
    if d.values in ("none", "is_causal", "upper_left", "lower_right"):
        return None
    if d.values in ("bool", "masked_fill", "where", "eye"):
        mask = visible
        if d.values == "eye":
            mask = visible | torch.eye(visible.shape[-1], dtype=torch.bool)
    else:
        value = {"inf": float("-inf"), "min": torch.finfo(dtype).min}.get(d.values)
        value = float(d.values) if value is None else value
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, value)
        mask = mask if bias is None else mask + bias.to(dtype)
    if d.shape == "qk":
        return mask[0, 0]
    if d.shape == "bhqk":
        return mask.expand(d.batch, d.heads, -1, -1)
    return mask if d.shape != "b1qk" or d.windows > 1 else mask.expand(d.batch, -1, -1, -1)


def arrange_mask(mask: Tensor, d: Description) -> Tensor:
    """A mask [Nq, Nk] or [B or 1, H or 1, Nq or 1, Nk] for scores on the description's axes."""
    axes = d.axes
    if mask.dim() == 2 or axes in ("bhnd", "bnhd"):
        return mask
    if axes in ("folded", "folded_h_major"):
        if mask.shape[:2] == (1, 1):
            return mask[0]
        mask = mask.expand(d.batch, d.heads, -1, -1)
        return (mask if axes == "folded" else mask.transpose(0, 1)).flatten(0, 1)
    if axes in ("single", "list"):
        return mask[:, 0]
    if axes == "heads_first":
        return mask.transpose(0, 1)
    if axes == "grouped":
        shape = (d.kv_heads, -1) if mask.shape[1] > 1 else (1, 1)
        return mask.unflatten(1, shape)
    assert axes in WINDOWS  # [W, 1, n, n], which broadcasts over what stands in front
    mask = mask.transpose(0, 1) if axes == "windows_bhwnd" else mask
    return mask[None] if d.shape == "b1qk" and axes == "windows_bwhnd" else mask
