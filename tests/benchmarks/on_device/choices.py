"""What choices are worth: drawn rows in order or not, and sizes of tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from lightning_geo import kernels
from lightning_geo.kernels import STATISTICS, AttentionProblem
from lightning_geo.kernels.triton import attention
from lightning_geo.kernels.triton.tiles import Tile, Tiles
from on_device.bench import Bench, micros, ratio, table
from on_device.calls import SHAPES, TINY, Shape, problem

__all__ = ["prepare"]

TILES = {
    64: (Tile(64, 128), Tile(64, 64), Tile(64, 32), Tile(128, 64), Tile(128, 32), Tile(128, 128, 8, 2)),
    128: (Tile(64, 128, 4, 2), Tile(64, 64), Tile(64, 32), Tile(128, 64, 8, 2), Tile(128, 128, 8, 2)),
}


def prepare(bench: Bench) -> object:
    """Compile the kernels of every choice."""
    sampled = list(_sampled(bench))
    tiled = list(_tiled(bench))
    for _, first, second in sampled:
        kernels.attention(first, "triton")
        kernels.attention(second, "triton")
    for _, call, tiles in tiled:
        attention(call, tiles)
    return lambda: _run(bench, sampled, tiled)


def _sampled(bench: Bench) -> Any:
    for causal in (True, False):
        shape = Shape(1, 32, 8, 40 if bench.tiny else 16384, 128, causal)
        rows = torch.rand(1, shape.tokens, device=bench.device).topk(16 if bench.tiny else 512).indices
        call = problem(bench, shape)
        yield (
            f"16,384 tokens, 512 rows, {'causal' if causal else 'not causal'}",
            dataclasses.replace(call, rows=rows),
            dataclasses.replace(call, rows=rows.sort().values),
        )


def _tiled(bench: Bench) -> Any:
    requested = frozenset(STATISTICS) - {"received"}
    for name, shape in (TINY if bench.tiny else SHAPES).items():
        if name.startswith("long"):
            continue
        call = problem(bench, shape, "none", requested)
        for tile in TILES[shape.width]:
            yield name, call, Tiles(tile, Tile(64, 64, stages=2))


def _run(bench: Bench, sampled: list[Any], tiled: list[Any]) -> None:
    def in_order() -> Any:
        for name, drawn, ordered in sampled:
            slow, fast = bench.times(_on_triton(drawn), _on_triton(ordered))
            yield name, round(micros(slow)), round(micros(fast)), ratio(slow, fast)

    def by_tile() -> Any:
        for name, call, tiles in tiled:
            (times,) = bench.times(lambda call=call, tiles=tiles: attention(call, tiles))
            tile = tiles.rows
            size = f"{tile.queries} × {tile.keys}, {tile.warps} warps, {tile.stages} stages"
            yield name, size, round(micros(times))

    table("Drawn rows", "call | as drawn µs | in order µs | drawn / in order", in_order())
    table("Tiles, all statistics but received mass, bf16", "call | tile | call µs", by_tile())


def _on_triton(call: AttentionProblem) -> Callable[[], object]:
    return lambda: kernels.attention(call, "triton")
