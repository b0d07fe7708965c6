"""How large the tiles of the Triton kernels are: a static table, so that nothing is tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Tile", "Tiles", "tiles_for"]

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
    # wgmma has four warps share a tile's rows; older tensor cores do so only where rows outnumber columns
    hopper = capability[0] in (9, 10)
    if dtype == torch.float32:
        rows = Tile(64, 32, stages=2)
        return Tiles(rows, Tile(64, 64, stages=2) if hopper else Tile(64, 32, stages=2))
    if hopper:
        rows = Tile(64, 128) if width <= 64 else Tile(64, 128 if width <= 128 else 64, stages=2)
    else:
        rows = Tile(128, 32) if width <= 64 else Tile(128, 32, stages=2)
    return Tiles(rows, Tile(64, 128, stages=2) if width <= 128 else Tile(64, 64, stages=2))
