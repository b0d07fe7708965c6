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


def tiles_for(
    width: int, dtype: torch.dtype, capability: tuple[int, int], hungry: bool = False, dense: bool = False
) -> Tiles:
    """Look up tiles that neither spill registers nor, in half precision, need over 99 KiB of shared memory.

    Args:
        width: The head dimension, rounded up to a power of two.
        dtype: Type of the dot products.
        capability: Of the CUDA device.
        hungry: Masks or special tokens need registers, too.
        dense: Masks that differ between rows need more.
    """
    # wgmma has four warps share a tile's rows; older tensor cores do so only where rows outnumber columns
    hopper = capability[0] in (9, 10)
    if dtype == torch.float32:
        return Tiles(Tile(64, 32, stages=2), Tile(64, 64 if hopper and not hungry else 32, stages=2))
    if not hopper:
        rows = Tile(128, 32, stages=3 if width <= 64 else 2)
    elif width > 128:
        rows = Tile(64, 64, stages=2)
    elif hungry:
        rows = Tile(64, 64)
    elif width <= 64:
        rows = Tile(64, 128)
    else:
        rows = Tile(64, 128, stages=2)
    return Tiles(rows, Tile(64, 64 if dense or width > 128 else 128, stages=2))
