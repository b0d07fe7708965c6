"""Arguments that the kernels of one attention call share: masks, scales, tiles, planes.

This module loads without Triton.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_geo.kernels.problem import STATISTICS, AttentionProblem
from lightning_geo.kernels.triton.arguments import MaskSlots, Scaling, Sizes, Vectors
from lightning_geo.kernels.triton.constants import Dots
from lightning_geo.kernels.triton.launch import as_bytes, interpreted, strides
from lightning_geo.kernels.triton.masks import Masks, rules_of
from lightning_geo.kernels.triton.tiles import Tiles, tiles_for
from lightning_geo.utils.shapes import Float, Shaped

__all__ = ["Inputs"]

_LOG2E = math.log2(math.e)

#: Statistics that the rows kernel writes, one plane each.
_PLANES = tuple(name for name in STATISTICS if name != "received")

# factors of the exponent for which bare dot products can be hidden without overflow
_TAME_FACTORS = (1e-3, 64.0)


class Inputs:
    """The arguments of a call's kernels.

    Args:
        problem: The attention call.
        masks: Its masks.
        capability: Of the CUDA device.
        tiles: Sizes of the tiles; from the table if None.
    """

    def __init__(
        self, problem: AttentionProblem, masks: Masks, capability: tuple[int, int], tiles: Tiles | None
    ) -> None:
        self.problem = problem
        self.masks = masks
        self.planes = [name for name in _PLANES if self.computes(name)]
        query, key = problem.query, problem.key
        # bfloat16 arithmetic is wrong in the interpreter
        upcast = query.dtype != key.dtype or (interpreted() and torch.bfloat16 in (query.dtype, key.dtype))
        dtype = torch.float32 if upcast else query.dtype
        self.dots = Dots.of(query.shape[3], upcast, dtype)
        # larger tiles spilled registers here when compiled ahead of time
        hungry = bool(problem.masks) or (
            self.computes("special_mass") and (self.dots.held > 64 or not self.banded)
        )
        # blocks of 128 rows are wasted on few, and a cap spills registers there
        keys = problem.keys if problem.rows_shape[2] > 64 and not self._scaled else None
        self.tiles = tiles or tiles_for(self.dots.held, dtype, capability, hungry, bool(masks.rows), keys)
        self.rules = rules_of(problem, masks, self._scaled)

    def computes(self, name: str) -> bool:
        """Whether a statistic was requested and its inputs are there."""
        required = {"special_mass": self.problem.special, "learned_sink_mass": self.problem.sinks}
        return name in self.problem.requested and not (name in required and required[name] is None)

    @property
    def banded(self) -> bool:
        """Whether causality or a window limits which keys a row may see."""
        return self.problem.left is not None or self.problem.right is not None

    @property
    def counted(self) -> bool:
        """Whether visible keys must be counted, since no formula gives their number."""
        return self.computes("visible_keys") and bool(self.problem.masks)

    @property
    def _scaled(self) -> bool:
        """Whether scores are scaled before masks: bare dot products save a multiplication per score."""
        return (
            self.problem.softcap is not None
            or self.masks.biased
            or any(mask.dtype != torch.bool for mask in self.masks.rows)
            or not _TAME_FACTORS[0] <= self.problem.scale * _LOG2E <= _TAME_FACTORS[1]
        )

    @cached_property
    def visibility(self) -> dict[str, Any]:
        """Masks and band, for every kernel."""
        problem, query, row = self.problem, self.problem.query, self.masks.key_row
        arguments: dict[str, Any] = {
            "offset": problem.offset,
            "left": problem.left or 0,
            "right": problem.right or 0,
            "key_row": query if row is None else row,
            **strides("row", "bh", None if row is None else row[..., 0]),
        }
        for slot, name in enumerate("ab"):
            mask = self.masks.rows[slot] if slot < len(self.masks.rows) else None
            arguments[f"mask_{name}"] = query if mask is None else as_bytes(mask)
            arguments |= strides(name, "bhqk", mask)
        return arguments

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the passes over keys and over queries, and of the kernel that finishes the rows."""
        problem = self.problem
        batch, heads, measured = problem.rows_shape
        visibility = dict(self.visibility)
        band = {name: visibility.pop(name) for name in ("offset", "left", "right")}
        return {
            "query": Vectors(problem.query, *strides("query", "bhnd", problem.query).values()),
            "key": Vectors(problem.key, *strides("key", "bhnd", problem.key).values()),
            "masks": MaskSlots(**visibility),
            "sizes": Sizes(
                heads=heads,
                group=problem.group_size,
                queries=problem.query.shape[2],
                keys=problem.keys,
                pitch=self.masks.pitch,
                measured=measured,
                plane=batch * heads * measured,
                **band,
            ),
            "scaling": Scaling(
                problem.scale / (problem.softcap or 1.0),
                problem.softcap or 1.0,
                _LOG2E if self.rules.scaled else problem.scale * _LOG2E,
            ),
            "rows": problem.query if problem.rows is None else problem.rows.contiguous(),
        }

    def constants(self) -> dict[str, Any]:
        """Constants that all three are compiled for."""
        return {
            "DOTS": self.dots,
            "RULES": self.rules,
            "CHOSEN": self.problem.rows is not None,
        }

    def special(self) -> Float[Tensor, " ..."]:
        """Weights of special tokens; any tensor where they are not read."""
        return self.problem.query if self.masks.special is None else self.masks.special

    def query_mask(self) -> Shaped[Tensor, " ..."]:
        """Flags of real rows; any tensor where they are not read."""
        flags = self.problem.query_mask
        return self.problem.query if flags is None else as_bytes(flags.contiguous())
