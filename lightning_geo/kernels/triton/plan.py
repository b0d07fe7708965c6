"""Attention statistics as Triton kernels: one pass over the keys, one over the queries for received mass.

Between the two, each row's statistics are made from the sums of the first pass.

This module loads without Triton, so that it can give a reason when it cannot take a problem. The kernels
are in the modules beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_geo.kernels.blocks import BlockRule
from lightning_geo.kernels.problem import AttentionProblem, AttentionStatistics
from lightning_geo.kernels.triton.arguments import Counts
from lightning_geo.kernels.triton.constants import Dots, Planes, Sums
from lightning_geo.kernels.triton.inputs import Inputs
from lightning_geo.kernels.triton.launch import (
    DTYPES,
    Launch,
    capability_of,
    interpreted,
    missing,
    on_device,
    strides,
)
from lightning_geo.kernels.triton.masks import Masks, row_masks
from lightning_geo.kernels.triton.tiles import Tile, Tiles, shared_memory
from lightning_geo.kernels.workspace import zeros
from lightning_geo.utils.shapes import Bool, Float, Integer

__all__ = ["attention", "launches", "unsupported"]

# rows of a program that finishes them, one to each thread; with 32 of them registers spill in Triton 3.9
_FINISHED = 64


def unsupported(operation: str, problem: AttentionProblem) -> str | None:
    """Return the reason why these kernels cannot take a problem; None if they can.

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
    return None if interpreted() else _lacking_memory(query, key)


def _lacking_memory(
    query: Float[Tensor, "batch heads queries dim"], key: Float[Tensor, "batch key_heads keys dim"]
) -> str | None:
    """Return the reason if a CUDA device has too little shared memory for a tile; None if it has enough."""
    device: Any = torch.cuda.get_device_properties(query.device)
    dtype = query.dtype if query.dtype == key.dtype else torch.float32
    width = Dots.of(query.shape[3], False, dtype).held
    required = shared_memory(width, dtype, (device.major, device.minor))
    if required <= device.shared_memory_per_block_optin:
        return None
    return (
        f"tiles that need {required} bytes of shared memory, where {device.name} has "
        f"{device.shared_memory_per_block_optin}"
    )


def attention(problem: AttentionProblem, tiles: Tiles | None = None) -> AttentionStatistics:
    """Compute the statistics of one attention call on a CUDA device, in float32.

    Args:
        problem: The attention call, one that :func:`unsupported` returns None for.
        tiles: Sizes of the tiles, for tests; from the table by default.

    Returns:
        The statistics. Beside them, three to eight float32 numbers per row are held, and two more if received
        mass is requested.
    """
    device = problem.query.device
    with torch.no_grad(), on_device(device):
        todo, statistics = launches(problem, capability_of(device), tiles)
        for launch in todo:
            launch.run()
    return statistics


def launches(
    problem: AttentionProblem, capability: tuple[int, int], tiles: Tiles | None = None
) -> tuple[list[Launch], AttentionStatistics]:
    """Prepare the kernels of a problem and the statistics that they fill; nothing runs yet.

    Args:
        problem: The attention call, on any device: ``meta`` will do to compile ahead of time.
        capability: Of the device to run on.
        tiles: Sizes of the tiles; from the table by default.
    """
    inputs = Inputs(problem, Masks.of(problem), capability, tiles)
    new = problem.query.new_empty
    shape = problem.rows_shape
    planes = new(max(1, len(inputs.planes)), *shape, dtype=torch.float32)
    live = new(shape, dtype=torch.bool)
    todo: list[Launch] = []
    counts, first = inputs.masks.counts, inputs.masks.first
    if inputs.masks.rows and (inputs.counted or inputs.computes("first_mass")):
        launch, counts, first = _visibility(inputs)
        todo.append(launch)
    softmax = damaged = received = None
    if "received" in problem.requested:
        softmax = new(2, *shape, dtype=torch.float32)
        damaged = zeros(shape[:2], problem.query, torch.int32)
        received = new(*shape[:2], problem.keys, dtype=torch.float32)
    index = Planes(**{name: index for index, name in enumerate(inputs.planes)})
    kept = Sums.of(index, causal=problem.right == 0)
    sums = new(kept.count, *shape, dtype=torch.float32)
    todo.append(_rows(inputs, kept, sums))
    todo.append(_finish(inputs, index, kept, sums, planes, live, counts, first, softmax, damaged))
    if received is not None:
        todo.append(_columns(inputs, softmax, damaged, received))
    fields = dict(zip(inputs.planes, planes, strict=False))
    return todo, AttentionStatistics(live=live, received=received, **fields)


def _visibility(
    inputs: Inputs,
) -> tuple[Launch, Float[Tensor, "batch heads queries"], Integer[Tensor, " batch"]]:
    """Prepare the kernel that counts visible keys and finds the first one, and the tensors that it fills."""
    from lightning_geo.kernels.triton.visibility import visibility_kernel

    problem = inputs.problem
    batch, _, queries, _ = problem.query.shape
    heads = inputs.masks.heads
    counts = problem.query.new_empty(batch, heads, queries, dtype=torch.float32)
    first = problem.query.new_full((batch,), problem.keys, dtype=torch.int32)
    tile = (32, 128)
    launch = Launch(
        visibility_kernel,
        batch * heads * -(-queries // tile[0]),
        {
            "query_mask": inputs.query_mask(),
            "counts": counts,
            "first": first,
            "heads": heads,
            "queries": queries,
            "keys": problem.keys,
            **inputs.visibility,
        },
        {
            "QUERY_MASK": problem.query_mask is not None,
            "COUNT": inputs.counted,
            "FIRST": inputs.computes("first_mass"),
            "BLOCK_M": tile[0],
            "BLOCK_N": tile[1],
            "RULES": inputs.rules,
        },
        {"num_warps": 4},
    )
    return launch, counts, first


def _rows(inputs: Inputs, kept: Sums, sums: Float[Tensor, "sums batch heads rows"]) -> Launch:
    """Prepare the pass over the keys."""
    from lightning_geo.kernels.triton.rows import rows_kernel

    problem, tile = inputs.problem, inputs.tiles.rows
    return Launch(
        rows_kernel,
        problem.rows_shape[0] * problem.rows_shape[1] * -(-problem.rows_shape[2] // tile.queries),
        {
            **inputs.arguments,
            "query_mask": inputs.query_mask(),
            "special": inputs.special(),
            "sums": sums,
        },
        {
            **inputs.constants(),
            **_sizes(tile),
            "TAIL": problem.keys % tile.keys != 0,
            "QUERY_MASK": problem.query_mask is not None,
            "SUMS": kept,
        },
        _options(tile),
    )


def _finish(
    inputs: Inputs,
    index: Planes,
    kept: Sums,
    sums: Float[Tensor, "sums batch heads rows"],
    planes: Float[Tensor, "planes batch heads rows"],
    live: Bool[Tensor, "batch heads rows"],
    counts: Float[Tensor, "#batch #heads #queries"] | None,
    first: Integer[Tensor, " batch"] | None,
    softmax: Float[Tensor, "2 batch heads rows"] | None,
    damaged: Integer[Tensor, "batch heads"] | None,
) -> Launch:
    """Prepare the kernel that turns a row's sums into statistics."""
    from lightning_geo.kernels.triton.finish import finish_kernel

    problem = inputs.problem
    counts = counts if inputs.counted else None
    return Launch(
        finish_kernel,
        problem.rows_shape[0] * problem.rows_shape[1] * -(-problem.rows_shape[2] // _FINISHED),
        {
            **inputs.arguments,
            "query_mask": inputs.query_mask(),
            "sinks": problem.query if problem.sinks is None else problem.sinks.contiguous(),
            "counts": Counts(planes if counts is None else counts, *strides("", "bhq", counts).values()),
            "first": live.view(torch.uint8) if first is None else first,
            "sums": sums,
            "planes": planes,
            "live": live.view(torch.uint8),
            "softmax": planes if softmax is None else softmax,
            "damaged": planes if damaged is None else damaged,
        },
        {
            **inputs.constants(),
            "BLOCK": _FINISHED,
            "QUERY_MASK": problem.query_mask is not None,
            "COUNTED": counts is not None,
            "RECEIVED": softmax is not None,
            "PLANES": index,
            "SUMS": kept,
        },
        {"num_warps": _FINISHED // 32, "enable_fp_fusion": True},
    )


def _columns(
    inputs: Inputs,
    softmax: Float[Tensor, "2 batch heads rows"] | None,
    damaged: Integer[Tensor, "batch heads"] | None,
    received: Float[Tensor, "batch heads keys"],
) -> Launch:
    """Prepare the pass over the queries."""
    from lightning_geo.kernels.triton.columns import columns_kernel

    tile = inputs.tiles.columns
    return Launch(
        columns_kernel,
        received.shape[0] * received.shape[1] * -(-inputs.problem.keys // tile.keys),
        {**inputs.arguments, "softmax": softmax, "damaged": damaged, "received": received},
        {**inputs.constants(), **_sizes(tile)},
        _options(tile),
    )


def _sizes(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.queries, "BLOCK_N": tile.keys}


def _options(tile: Tile) -> dict[str, Any]:
    # Triton 3.10 turns fused multiply-adds off by default, which costs a quarter more instructions
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
