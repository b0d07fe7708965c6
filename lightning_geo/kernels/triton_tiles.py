"""How large the tiles of the Triton kernels are: a static table, so that nothing is tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["LANES", "Tile", "Tiles", "tiles_for"]

#: Column classes that sums are held for: the columns modulo 8 are what one thread of a tensor core's
#: accumulator holds, so that sums over a tile need no shuffle.
LANES = 8


class Tile(NamedTuple):
    """Queries and keys of a tile, warps that share it, stages of its pipeline."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 3


class Tiles(NamedTuple):
    """The tiles of the pass over keys and of the pass over queries."""

    rows: Tile
    columns: Tile


def tiles_for(width: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """Look up tiles that neither spill nor need more than 99 KiB of shared memory.

    Args:
        width: The head dimension, rounded up to a power of two.
        dtype: What the dot products are taken in.
        capability: Of the CUDA device.
    """
    if dtype == torch.float32:
        return Tiles(Tile(64, 32, stages=2), Tile(32, 64, stages=2))
    if width <= 64:
        return Tiles(Tile(64, 128), Tile(128, 64))
    if width <= 128:
        return Tiles(Tile(64, 64), Tile(128, 64, stages=2))
    return Tiles(Tile(64, 32, stages=2), Tile(32, 64, stages=2))
