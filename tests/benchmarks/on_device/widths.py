"""What a head's width costs, powers of two and those between them."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from lightning_geo import kernels
from lightning_geo.kernels import STATISTICS
from lightning_geo.kernels.triton import attention
from lightning_geo.kernels.triton.tiles import Tile, Tiles
from on_device.bench import Bench, micros, ratio, table
from on_device.calls import Shape, flash, problem

__all__ = ["prepare"]

WIDTHS = (64, 80, 96, 112, 128, 160, 192, 256)

#: Tiles of rows and of columns to compare with those of the table.
TILES = {
    80: (Tiles(Tile(64, 64), Tile(64, 128, stages=2)),),
    96: (Tiles(Tile(64, 64), Tile(64, 128, stages=2)),),
    112: (Tiles(Tile(128, 64), Tile(64, 128, stages=2)),),
    128: (Tiles(Tile(128, 64), Tile(64, 128, stages=2)), Tiles(Tile(64, 64), Tile(64, 64, stages=2))),
    160: (
        Tiles(Tile(64, 128, stages=2), Tile(64, 128, stages=2)),
        Tiles(Tile(64, 64, stages=2), Tile(64, 64, stages=2)),
    ),
    192: (Tiles(Tile(64, 64, stages=2), Tile(64, 64, stages=2)),),
}


def prepare(bench: Bench) -> object:
    """Compile the kernels of every width."""
    calls = []
    for width in WIDTHS:
        shape = Shape(1, 2, 2, 40, width, False) if bench.tiny else Shape(8, 16, 16, 1024, width, False)
        calls.append((width, problem(bench, shape, requested=frozenset(STATISTICS))))
    for width, call in calls:
        kernels.attention(call, "triton")
        for tiles in TILES.get(width, ()):
            attention(call, tiles)
    return lambda: _run(bench, calls)


def _run(bench: Bench, calls: list[tuple[int, Any]]) -> None:
    def rows() -> Any:
        for width, call in calls:
            whole = functools.partial(kernels.attention, call, "triton")
            forward, ours = bench.times(flash(bench, call, False), whole)
            batch, heads, tokens, _ = call.query.shape
            rate = batch * heads * tokens**2 / statistics.median(ours) / 1e6
            yield width, micros(forward), micros(ours), ratio(ours, forward), rate

    table(
        "All statistics by the width of a head, B 8, H 16, N 1024, bf16",
        "D | SDPA µs | call µs | call / SDPA | scores/ns",
        rows(),
    )

    def by_tile() -> Any:
        for width, call in calls:
            for tiles in TILES.get(width, ()):
                (times,) = bench.times(functools.partial(attention, call, tiles))
                sizes = (f"{tile.queries} × {tile.keys}, {tile.stages} stages" for tile in tiles)
                yield width, *sizes, micros(times)

    table("Other tiles", "D | rows | columns | call µs", by_tile())
