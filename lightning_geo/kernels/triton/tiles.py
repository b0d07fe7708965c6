"""How large the tiles of the Triton kernels are: a static table, so that nothing is tuned at run time."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch

__all__ = ["GramTile", "Tile", "Tiles", "gram_tile_for", "shared_memory", "tiles_for"]


#: Up to so many keys, smaller tiles were faster on an H200: what a block of rows costs beside them counts.
_SHORTEST, _SHORT = 256, 1024


class Tile(NamedTuple):
    """Queries and keys of a tile, warps that share it, stages of its pipeline.

    ``shared`` KiB of shared memory suffice for its kernel, whatever the masks. Every device has 99, those of
    compute capability 9 and 10 have 227.
    """

    queries: int
    keys: int
    warps: int = 4
    stages: int = 3
    shared: int = 99


class GramTile(NamedTuple):
    """Features along each side of a block of second moments, tokens it takes at once, warps that share it."""

    features: int
    tokens: int
    warps: int


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
    keys: int | None = None,
) -> Tiles:
    """Look up the tiles of a call.

    They spill no registers in half precision, but for a few beside masks that differ between rows, and at 96
    and above before a Hopper. In float32 some do: rows of more than 128 features, and on a Hopper masks that
    differ between rows, or 128 features with any mask or special tokens.

    Args:
        width: The features of a head that a tile holds.
        dtype: Type of the dot products.
        capability: Of the CUDA device.
        hungry: Masks or special tokens need registers, too.
        dense: Masks that differ between rows need more.
        keys: How many there are; None where a short call needs no tiles of its own.
    """
    # wgmma has four warps share a tile's rows; older tensor cores do so only where rows outnumber columns
    hopper = capability[0] in (9, 10)
    if dtype == torch.float32:
        return _float32_tiles(width, hopper, hungry, dense)
    if not hopper:
        rows = Tile(128, 32, stages=3 if width <= 80 else 2)
    elif width > 128:
        rows = Tile(64, 32 if dense and width <= 160 else 64, stages=2, shared=113)
    elif hungry or width > 96:
        rows = Tile(64, 64)
    elif keys is None or keys > _SHORT:
        rows = Tile(64, 128)
    else:
        rows = Tile(128, 64) if keys > _SHORTEST else Tile(64, 32)
    large = width <= (192 if hopper else 128)
    return Tiles(rows, Tile(64, 128 if large and not dense else 64, stages=2))


def gram_tile_for(dtype: torch.dtype, capability: tuple[int, int]) -> GramTile:
    """Look up the tile for second moments of wide vectors; it spills no registers."""
    if dtype != torch.float32 and capability[0] in (9, 10):
        return GramTile(128, 32, warps=8)
    return GramTile(64, 32, warps=4)


@functools.cache
def shared_memory(width: int, dtype: torch.dtype, capability: tuple[int, int]) -> int:
    """Bytes of shared memory that suffice for every kernel of these sizes; see :func:`tiles_for`."""
    needs = itertools.product((False, True), (False, True), (_SHORTEST, _SHORT, None))
    tiles = [tiles_for(width, dtype, capability, *each) for each in needs]
    return 1024 * max(tile.shared for both in tiles for tile in both)


def _float32_tiles(width: int, hopper: bool, hungry: bool, dense: bool) -> Tiles:
    if width > 128:
        return Tiles(Tile(16, 32, stages=2), Tile(32, 16, warps=8, stages=2))
    if not hopper and (dense or width > 64):
        return Tiles(Tile(32 if dense and width > 64 else 64, 16, stages=2), Tile(64, 16, stages=2))
    columns = 64 if hopper and not hungry else 32
    wide = width > 64
    return Tiles(
        Tile(64, 32, stages=2, shared=113 if wide else 99),
        Tile(64, columns, stages=2, shared=161 if wide and columns == 64 else 99),
    )
