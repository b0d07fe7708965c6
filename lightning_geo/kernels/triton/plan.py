"""Attention statistics as Triton kernels: one pass over the keys, one over the queries for received mass.

This module loads without Triton, so that it can say why it cannot take a problem; the kernels are in the
modules beside it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.kernels.blocks import BlockRule
from lightning_geo.kernels.problem import STATISTICS, AttentionProblem, AttentionStatistics
from lightning_geo.kernels.triton.launch import (
    DTYPES,
    Launch,
    as_bytes,
    interpreted,
    missing,
    on_device,
    strides,
)
from lightning_geo.kernels.triton.masks import key_row_of, row_masks, rules_of
from lightning_geo.kernels.triton.tiles import Tile, Tiles, tiles_for

__all__ = ["attention", "launches", "unsupported"]

_LOG2E = math.log2(math.e)

# what the kernels for rows write, one plane each
_PLANES = tuple(name for name in STATISTICS if name != "received")

# a multiple of all tiles' keys
_PITCH = 128

# factors of the exponent for which bare dot products can be hidden without overflow
_TAME_FACTORS = (1e-3, 64.0)


def unsupported(operation: str, problem: AttentionProblem) -> str | None:
    """Say why these kernels cannot take a problem; None if they can.

    Args:
        operation: ``"attention"``, the only one here.
        problem: The attention call.
    """
    query, key = problem.query, problem.key
    reason = missing(query.device)
    if reason is not None:
        return reason
    for tensor in (query, key):
        if tensor.dtype not in DTYPES:
            return f"a dtype of {tensor.dtype}"
    if query.shape[3] > 256:
        return f"a head_dim of {query.shape[3]}, above 256"
    if 0 in query.shape or 0 in problem.rows_shape:
        return "it has no rows"
    if any(isinstance(mask, BlockRule) for mask in problem.masks):
        return "a BlockMask"
    if len(row_masks(problem)) > 2:
        return f"{len(problem.masks)} masks that do not fit into two"
    return None


def attention(problem: AttentionProblem, tiles: Tiles | None = None) -> AttentionStatistics:
    """Compute the statistics of one attention call on a CUDA device, in float32.

    Args:
        problem: The attention call; :func:`unsupported` has nothing against it.
        tiles: Sizes of the tiles, for tests; from the table by default.

    Returns:
        The statistics. Beside them, two float32 numbers per row are held if received mass is wanted.
    """
    device = problem.query.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    with torch.no_grad(), on_device(device):
        todo, statistics = launches(problem, capability, tiles)
        for launch in todo:
            launch.run()
    return statistics


def launches(
    problem: AttentionProblem, capability: tuple[int, int], tiles: Tiles | None = None
) -> tuple[list[Launch], AttentionStatistics]:
    """Prepare the kernels of a problem and the statistics that they fill: nothing runs, nothing is read.

    Args:
        problem: The attention call, on any device: ``meta`` will do to compile ahead of time.
        capability: Of the device to run on.
        tiles: Sizes of the tiles; from the table by default.
    """
    return _Plan(problem, capability, tiles).launches()


class _Plan:
    """What the kernels of one problem have in common."""

    def __init__(self, problem: AttentionProblem, capability: tuple[int, int], tiles: Tiles | None) -> None:
        self.problem = problem
        query, key = problem.query, problem.key
        same = query.dtype == key.dtype
        interpreted_bfloat16 = interpreted() and torch.bfloat16 in (query.dtype, key.dtype)
        self.upcast = not same or interpreted_bfloat16  # bfloat16 arithmetic is wrong in the interpreter
        dtype = torch.float32 if self.upcast else query.dtype
        width = query.shape[3]
        block = max(16, 1 << (width - 1).bit_length())
        masks = row_masks(problem)
        # rows of keys reach to the end of any tile
        self.pitch = -(-problem.keys // _PITCH) * _PITCH
        key_row, biased = key_row_of(problem, self.pitch)
        factor = problem.scale * _LOG2E
        # bare dot products save a multiplication per score; float masks and caps need scores
        scaled = (
            problem.softcap is not None
            or biased
            or any(mask.dtype != torch.bool for mask in masks)
            or not _TAME_FACTORS[0] <= factor <= _TAME_FACTORS[1]
        )
        self.band = {
            "offset": problem.offset,
            "left": problem.left or 0,
            "right": problem.right or 0,
        }
        self.masks: dict[str, Any] = {
            "key_row": query if key_row is None else key_row,
            **strides("row", "bh", None if key_row is None else key_row[..., 0]),
        }
        self.rules = rules_of(problem, masks, 0 if key_row is None else 2 if biased else 1, scaled)
        for slot, name in enumerate("ab"):
            mask = masks[slot] if slot < len(masks) else None
            self.masks[f"mask_{name}"] = query if mask is None else as_bytes(mask)
            self.masks |= strides(name, "bhqk", mask)
        self.scores = {
            "scale": problem.scale / (problem.softcap or 1.0),
            "softcap": problem.softcap or 1.0,
            "factor": _LOG2E if scaled else factor,
        }
        self.dots = {
            "D": width,
            "BLOCK_D": block,
            "UPCAST": self.upcast,
            # three TF32 products keep float32's digits on tensor cores
            "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
        }
        # what spilled in larger tiles, compiled ahead of time
        banded = problem.left is not None or problem.right is not None
        hungry = bool(problem.masks) or (self._asked("special_mass") and (block > 64 or not banded))
        self.tiles = tiles or tiles_for(block, dtype, capability, hungry, bool(masks))
        together = masks if key_row is None else [*masks, key_row]
        self.mask_heads = max((mask.shape[1] for mask in together), default=1)
        # whether rows differ in which keys they may see
        self.per_row = problem.left is not None or problem.right is not None or bool(masks)
        self.count = self._asked("visible_keys") and bool(problem.masks)
        self.planes = [name for name in _PLANES if self._asked(name)]

    def _asked(self, name: str) -> bool:
        given = {"special_mass": self.problem.special, "learned_sink_mass": self.problem.sinks}
        return name in self.problem.wanted and not (name in given and given[name] is None)

    def launches(self) -> tuple[list[Launch], AttentionStatistics]:
        """All kernels, in order."""
        problem = self.problem
        new = problem.query.new_empty
        shape = problem.rows_shape
        planes = new(max(1, len(self.planes)), *shape, dtype=torch.float32)
        live = new(shape, dtype=torch.bool)
        todo: list[Launch] = []
        counts = first = None
        if self.count or self._asked("first_mass"):
            launch, counts, first = self._visibility(self.count)
            todo.append(launch)
        softmax = damaged = received = None
        if "received" in problem.wanted:
            softmax = new(2, *shape, dtype=torch.float32)
            damaged = problem.query.new_zeros(shape[:2], dtype=torch.int32)
            received = new(*shape[:2], problem.keys, dtype=torch.float32)
        todo.append(self._rows(planes, live, counts, first, softmax, damaged))
        if received is not None:
            todo.append(self._columns(softmax, damaged, received))
        fields = dict(zip(self.planes, planes, strict=False))
        return todo, AttentionStatistics(live=live, received=received, **fields)

    def _visibility(self, count: bool) -> tuple[Launch, Tensor, Tensor]:
        from lightning_geo.kernels.triton.visibility import visibility_kernel

        problem = self.problem
        batch, _, queries, _ = problem.query.shape
        rows = queries if self.per_row else 1
        counts = problem.query.new_empty(batch, self.mask_heads, rows, dtype=torch.float32)
        first = problem.query.new_full((batch,), problem.keys, dtype=torch.int32)
        tile = (32, 128)
        launch = Launch(
            visibility_kernel,
            batch * self.mask_heads * -(-rows // tile[0]),
            {
                "query_mask": self._flags(problem.query_mask),
                "counts": counts,
                "first": first,
                "heads": self.mask_heads,
                "rows": rows,
                "queries": queries,
                "keys": problem.keys,
                **self.masks,
                **self.band,
            },
            {
                "QUERY_MASK": problem.query_mask is not None,
                "COUNT": count,
                "FIRST": self._asked("first_mass"),
                "BLOCK_M": tile[0],
                "BLOCK_N": tile[1],
                "RULES": self.rules,
            },
            {"num_warps": 4},
        )
        return launch, counts, first

    def _rows(
        self,
        planes: Tensor,
        live: Tensor,
        counts: Tensor | None,
        first: Tensor | None,
        softmax: Tensor | None,
        damaged: Tensor | None,
    ) -> Launch:
        from lightning_geo.kernels.triton.rows import rows_kernel

        problem = self.problem
        counted = counts if self.count else None
        statistics = {
            name.upper(): self.planes.index(name) if name in self.planes else -1 for name in _PLANES
        }
        tile = self.tiles.rows
        return Launch(
            rows_kernel,
            problem.rows_shape[0] * problem.rows_shape[1] * -(-problem.rows_shape[2] // tile.queries),
            {
                **self._inputs(),
                "query_mask": self._flags(problem.query_mask),
                "special": self._special(),
                "sinks": problem.query if problem.sinks is None else problem.sinks.contiguous(),
                "counts": planes if counted is None else counted,
                "first": live.view(torch.uint8) if first is None else first,
                "planes": planes,
                "live": live.view(torch.uint8),
                "softmax": planes if softmax is None else softmax,
                "damaged": planes if damaged is None else damaged,
                "queries": problem.query.shape[2],
                "pitch": self.pitch,
                **strides("counts", "bhq", counted),
            },
            {
                **self._tile_constants(tile),
                "TAIL": problem.keys % tile.keys != 0,
                "QUERY_MASK": problem.query_mask is not None,
                "COUNTED": counted is not None,
                "RECEIVED": softmax is not None,
                **statistics,
            },
            _options(tile),
        )

    def _columns(self, softmax: Tensor | None, damaged: Tensor | None, received: Tensor) -> Launch:
        from lightning_geo.kernels.triton.columns import columns_kernel

        problem = self.problem
        tile = self.tiles.columns
        return Launch(
            columns_kernel,
            received.shape[0] * received.shape[1] * -(-problem.keys // tile.keys),
            {**self._inputs(), "softmax": softmax, "damaged": damaged, "received": received},
            self._tile_constants(tile),
            _options(tile),
        )

    def _inputs(self) -> dict[str, Any]:
        problem = self.problem
        batch, heads, measured = problem.rows_shape
        return {
            "query": problem.query,
            "key": problem.key,
            "rows": problem.query if problem.rows is None else problem.rows.contiguous(),
            **strides("query", "bhnd", problem.query),
            **strides("key", "bhnd", problem.key),
            "heads": heads,
            "group": problem.group_size,
            "keys": problem.keys,
            "measured": measured,
            "plane": batch * heads * measured,
            **self.masks,
            **self.band,
            **self.scores,
        }

    def _tile_constants(self, tile: Tile) -> dict[str, Any]:
        return {
            **self.dots,
            "RULES": self.rules,
            "CHOSEN": self.problem.rows is not None,
            "BLOCK_M": tile.queries,
            "BLOCK_N": tile.keys,
        }

    def _special(self) -> Tensor:
        if not self._asked("special_mass") or self.problem.special is None:
            return self.problem.query
        weights = self.problem.special.to(torch.float32)
        return F.pad(weights, (0, self.pitch - self.problem.keys))

    def _flags(self, flags: Tensor | None) -> Tensor:
        return self.problem.query if flags is None else as_bytes(flags.contiguous())


def _options(tile: Tile) -> dict[str, Any]:
    # Triton 3.10 has fused multiply-adds off by default: a quarter more instructions
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
