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
    width: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    hungry: bool = False,
    dense: bool = False,
    short: bool = False,
) -> Tiles:
    """Look up tiles that fit into any device's shared memory, 99 KiB, or 227 KiB on a Hopper in float32.

    They spill no registers in half precision. In float32 some do: rows of more than 128 features, and on a
    Hopper masks that differ between rows, or 128 features with any mask or special tokens.

    Args:
        width: The head dimension, rounded up to a power of two.
        dtype: Type of the dot products.
        capability: Of the CUDA device.
        hungry: Masks or special tokens need registers, too.
        dense: Masks that differ between rows need more.
        short: There are few keys, so that what a block of rows costs beside its tiles counts.
    """
    # wgmma has four warps share a tile's rows; older tensor cores do so only where rows outnumber columns
    hopper = capability[0] in (9, 10)
    if dtype == torch.float32:
        return _float32_tiles(width, hopper, hungry, dense)
    if not hopper:
        rows = Tile(128, 32, stages=3 if width <= 64 else 2)
    elif width > 128:
        rows = Tile(64, 64, stages=2)
    elif hungry:
        rows = Tile(64, 64)
    elif width <= 64:
        rows = Tile(128, 64) if short else Tile(64, 128)
    else:
        rows = Tile(64, 128, stages=2)
    return Tiles(rows, Tile(64, 64 if dense or width > 128 else 128, stages=2))


def _float32_tiles(width: int, hopper: bool, hungry: bool, dense: bool) -> Tiles:
    if width > 128:
        return Tiles(Tile(16, 32, stages=2), Tile(32, 16, warps=8, stages=2))
    if not hopper and (dense or width > 64):
        return Tiles(Tile(32 if dense and width > 64 else 64, 16, stages=2), Tile(64, 16, stages=2))
    return Tiles(Tile(64, 32, stages=2), Tile(64, 64 if hopper and not hungry else 32, stages=2))
