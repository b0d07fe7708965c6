"""Masks as the kernels read them: at most two that differ between rows, and one row of keys for the rest.

This module loads without Triton.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.problem import AttentionProblem
from lightning_geo.kernels.visibility import count_visible, first_keys
from lightning_geo.kernels.workspace import kept_of
from lightning_geo.utils.shapes import Bool, Float, Int64, Integer, Shaped

__all__ = [
    "BOOL_MASK",
    "CAUSAL",
    "FLOAT_MASK",
    "HIDDEN_SCORE",
    "Masks",
    "Rules",
    "row_masks",
    "rules_of",
]

#: Score of a hidden key: finite, so that no inf - inf arises, and a power of two, so that a product with
#: it is exact: a fused multiply-add must find it equal to itself.
HIDDEN_SCORE = -(2.0**100)

#: The kinds of a mask slot; 0 is an empty one.
BOOL_MASK, FLOAT_MASK = 1, 2

# keys of the widest tile
_PITCH = 128

#: A right side that ends at the row's own position; 0 is an open one, 1 any other.
CAUSAL = 2


@dataclass(frozen=True)
class Rules:
    """How dot products become scores: one constexpr argument that a kernel is compiled for.

    Args:
        scaled: Scores are scaled before masks; else the scale is in the exponent's factor.
        capped: There is a softcap.
        left: A window ends on the left.
        right: 0, 1 or ``CAUSAL``.
        key_row: 0 without a row of keys, 1 where it only hides, 2 where it adds a bias, too.
        a: Kind of the first mask slot.
        a_rows: It differs between rows.
        b: Kind of the second.
        b_rows: It differs between rows.
    """

    scaled: bool
    capped: bool
    left: bool
    right: int
    key_row: int
    a: int
    a_rows: bool
    b: int
    b_rows: bool


def rules_of(problem: AttentionProblem, masks: Masks, scaled: bool) -> Rules:
    """Read the rules off a problem and its masks."""
    kinds = [BOOL_MASK if mask.dtype == torch.bool else FLOAT_MASK for mask in masks.rows] + [0, 0]
    per_row = [mask.shape[2] > 1 for mask in masks.rows] + [False, False]
    key_row = 0 if masks.key_row is None else 2 if masks.biased else 1
    right = 0 if problem.right is None else CAUSAL if problem.right == 0 else 1
    return Rules(
        scaled, problem.softcap is not None, problem.left is not None, right, key_row,
        kinds[0], per_row[0], kinds[1], per_row[1],
    )  # fmt: skip


def row_masks(problem: AttentionProblem) -> list[Shaped[Tensor, "#batch #heads queries #keys"]]:
    """The masks that differ between rows, float ones first, bool ones merged where that makes none larger."""
    masks = [mask for mask in problem.masks if isinstance(mask, Tensor) and mask.shape[2] > 1]
    floats = [mask for mask in masks if mask.dtype != torch.bool]
    bools: list[Tensor] = []
    for mask in masks:
        if mask.dtype == torch.bool:
            for i, other in enumerate(bools):
                shape = torch.broadcast_shapes(mask.shape, other.shape)
                if math.prod(shape) <= max(mask.numel(), other.numel()):
                    bools[i] = mask & other
                    break
            else:
                bools.append(mask)
    return floats + bools


@dataclass(frozen=True)
class Masks:
    """A problem's masks in the form that kernels read; made once for all layers of a sample that share them.

    Args:
        rows: The masks that differ between rows.
        key_row: The others, float32 ``[B or 1, H or 1, pitch]``, ``HIDDEN_SCORE`` where a key is hidden and
            beyond the last one; None without such masks.
        biased: Whether the others add anything.
        pitch: Length of rows of keys: a multiple of every tile's keys, so that no tile reads past their end.
        special: Weights of special tokens, float32 ``[B, pitch]``; None where they are not read.
        counts: Visible keys, float32 ``[B or 1, H or 1, Nq or 1]``; None where a formula gives their number,
            they were not requested, or a kernel has to count them.
        first: The first key of each sequence, int32 ``[B]``; None where it was not requested, or a kernel has
            to search it.
    """

    rows: tuple[Shaped[Tensor, "#batch #heads queries #keys"], ...]
    key_row: Float[Tensor, "#batch #heads pitch"] | None
    biased: bool
    pitch: int
    special: Float[Tensor, "batch pitch"] | None
    counts: Float[Tensor, "#batch #heads #queries"] | None
    first: Integer[Tensor, " batch"] | None

    @classmethod
    def of(cls, problem: AttentionProblem) -> Masks:
        """Read a problem's masks."""
        pitch = -(-problem.keys // _PITCH) * _PITCH
        rows = tuple(row_masks(problem))
        shared = tuple(mask for mask in problem.masks if isinstance(mask, Tensor) and mask.shape[2] == 1)
        key_row, biased = kept_of(_key_row, shared, problem.keys, pitch)
        special = counts = first = None
        if problem.special is not None and "special_mass" in problem.requested:
            special = kept_of(_weights, (problem.special,), pitch)
        if problem.masks and not rows and "visible_keys" in problem.requested:
            counts = count_visible(problem)
        if not rows and "first_mass" in problem.requested:
            first = kept_of(_as_int32, (first_keys(problem),))
        return cls(rows, key_row, biased, pitch, special, counts, first)

    @property
    def heads(self) -> int:
        """Number of heads with masks of their own; 1 if all share theirs."""
        shared = () if self.key_row is None else (self.key_row,)
        return max((mask.shape[1] for mask in (*self.rows, *shared)), default=1)


def _key_row(
    masks: tuple[Shaped[Tensor, "#batch #heads 1 #keys"], ...], keys: int, pitch: int
) -> tuple[Float[Tensor, "#batch #heads {pitch}"] | None, bool]:
    """The masks that are the same for all rows in one, and whether they add anything.

    float32, so that a thread reads several at once.
    """
    hidden: Tensor | None = None
    bias: Tensor | None = None
    for mask in masks:
        row = mask[:, :, 0]
        if mask.dtype == torch.bool:
            part = ~row
        else:
            part = row <= HIDDEN_BELOW
            row = row.to(torch.float32).masked_fill(part, 0.0)
            bias = row if bias is None else bias + row
        hidden = part if hidden is None else hidden | part
    if hidden is None:
        return None, False
    row = torch.zeros_like(hidden, dtype=torch.float32) if bias is None else bias
    row = row.masked_fill(hidden, HIDDEN_SCORE)
    row = row.expand(*row.shape[:2], keys)
    return F.pad(row, (0, pitch - keys), value=HIDDEN_SCORE), bias is not None


def _weights(tensors: tuple[Bool[Tensor, "batch keys"]], pitch: int) -> Float[Tensor, "batch {pitch}"]:
    """Flags of special tokens as weights, with zeros to the end of the row."""
    return F.pad(tensors[0].to(torch.float32), (0, pitch - tensors[0].shape[1]))


def _as_int32(tensors: tuple[Int64[Tensor, " batch"]]) -> Integer[Tensor, " batch"]:
    return tensors[0].to(torch.int32).contiguous()
