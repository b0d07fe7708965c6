"""Statistics of token vectors as Triton kernels: one read of the vectors, then sums over a few partial ones.

This module loads without Triton, so that it can give a reason when it cannot take a call.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_geo.kernels.triton.launch import (
    DTYPES,
    Launch,
    as_bytes,
    capability_of,
    interpreted,
    missing,
    on_device,
    strides,
)
from lightning_geo.kernels.triton.partial_moments import directions_of, merged
from lightning_geo.kernels.triton.tiles import gram_tile_for
from lightning_geo.kernels.vectors import HeadMoments, StreamStatistics
from lightning_geo.kernels.workspace import kept
from lightning_geo.utils.shapes import Bool, Float

__all__ = [
    "gram_launch",
    "head_moments",
    "moments_launch",
    "stream_launch",
    "stream_statistics",
    "unsupported",
]

# programs that keep a large device busy; partial sums are one vector per program, so not many more
_PROGRAMS = 2048

# most features of vectors whose scatter a program holds, and of those whose scatter is computed by blocks
_WIDE, _WIDEST = 128, 2048


def unsupported(
    operation: str,
    x: Float[Tensor, "batch *heads tokens features"],
    mask: Bool[Tensor, "batch tokens"] | None,
    *rest: Float[Tensor, "batch tokens features"] | frozenset[str] | None,
) -> str | None:
    """Return the reason why these kernels cannot take a call; None if they can.

    Args:
        operation: ``"stream_statistics"`` or ``"head_moments"``.
        x: Its vectors.
        mask: Its mask.
        rest: Its other arguments: the block's input for the stream, and the requested statistics.
    """
    reason = missing(x.device)
    if reason is not None:
        return reason
    for tensor in (x, *rest):
        if isinstance(tensor, Tensor) and tensor.dtype not in DTYPES:
            return f"a dtype of {tensor.dtype}"
    if x.numel() == 0:
        return "it has no tokens"
    most = 16384 if operation == "stream_statistics" else _WIDE
    if operation == "head_moments" and frozenset({"scatter"}) in rest:
        most = _WIDEST
    if x.shape[-1] > most:
        return f"vectors of {x.shape[-1]} features, above {most}"
    return None


def stream_statistics(
    x: Float[Tensor, "batch tokens features"],
    mask: Bool[Tensor, "batch tokens"] | None,
    before: Float[Tensor, "batch tokens features"] | None,
    requested: frozenset[str],
) -> StreamStatistics:
    """Compute :func:`lightning_geo.kernels.vectors.stream_statistics` on a CUDA device."""
    with torch.no_grad(), on_device(x.device):
        launch, result, sums = stream_launch(x, mask, before, requested)
        launch.run()
        return result if sums is None else replace(result, **directions_of(sums))


def stream_launch(
    x: Float[Tensor, "batch tokens features"],
    mask: Bool[Tensor, "batch tokens"] | None,
    before: Float[Tensor, "batch tokens features"] | None,
    requested: frozenset[str],
) -> tuple[Launch, StreamStatistics, Float[Tensor, "batch chunks columns"] | None]:
    """Prepare the kernel, the planes that it fills, and sums of directions, see :func:`directions_of`."""
    from lightning_geo.kernels.triton import moments

    batch, tokens, width = x.shape
    block = max(16, _power(width))
    # a warp per row where a row fits: sums over features then stay within it
    warps = min(8, max(1, block // 1024))
    rows = max(1, min(4, 1024 * warps // block))
    steps, chunks = _split(batch, tokens, rows)
    names = [
        name
        for name in ("norm", "skewness", "kurtosis", "update_ratio")
        if name in requested and not (name == "update_ratio" and before is None)
    ]
    planes = x.new_empty(max(1, len(names)), batch, tokens, dtype=torch.float32)
    finite = x.new_empty(batch, tokens, dtype=torch.bool)
    directions = "directions" in requested
    sums = x.new_empty(batch, chunks, width + 1, dtype=torch.float32) if directions else None
    start = x if before is None else before
    launch = Launch(
        moments.stream_kernel,
        batch * chunks,
        {
            "x": x,
            "before": start,
            "mask": x if mask is None else as_bytes(mask.contiguous()),
            "planes": planes,
            "finite": as_bytes(finite),
            "sums": planes if sums is None else sums,
            **strides("x", "bnd", x),
            **strides("before", "bnd", start),
            "tokens": tokens,
            "chunks": chunks,
            "plane": batch * tokens,
        },
        {
            "D": width,
            "BLOCK_D": block,
            "ROWS": rows,
            "STEPS": steps,
            "MASKED": mask is not None,
            "DIRECTIONS": directions,
            **{
                name.upper(): names.index(name) if name in names else -1
                for name in ("norm", "skewness", "kurtosis", "update_ratio")
            },
        },
        {"num_warps": warps, "enable_fp_fusion": True},
    )
    valid = kept(_all, (batch, tokens), x.device) if mask is None else mask
    result = StreamStatistics(valid, finite, **dict(zip(names, planes, strict=False)))
    return launch, result, sums


def head_moments(
    x: Float[Tensor, "batch *heads tokens dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    requested: frozenset[str],
) -> HeadMoments:
    """Compute :func:`lightning_geo.kernels.vectors.head_moments` on a CUDA device."""
    with torch.no_grad(), on_device(x.device):
        valid = kept(_all, (x.shape[0], x.shape[-2]), x.device) if mask is None else mask
        if x.shape[-1] > _WIDE:
            launch, partial = gram_launch(x, mask, capability_of(x.device))
            launch.run()
            return HeadMoments(valid, **merged(**partial))
        launch, norm, partial = moments_launch(x, mask, requested)
        launch.run()
        fields = directions_of(partial["sums"]) if "sums" in partial else {}
        if "scatters" in partial:
            counts, means, scatters = (partial[name] for name in ("counts", "means", "scatters"))
            fields |= merged(counts.flatten(), means.flatten(0, 1), scatters.flatten(0, 1))
        return HeadMoments(valid, norm, **fields)


def moments_launch(
    x: Float[Tensor, "batch *heads tokens dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    requested: frozenset[str],
) -> tuple[
    Launch, Float[Tensor, "batch all_heads tokens"] | None, dict[str, Float[Tensor, "batch chunks ..."]]
]:
    """Prepare the kernel, the norms that it fills, and its partial moments, ``[B, chunks, …]`` each."""
    from lightning_geo.kernels.triton import moments

    x = x if x.dim() == 5 else x[:, None]
    batch, layers, inner, tokens, width = x.shape
    heads = layers * inner
    block = max(16, _power(width))
    scatter, directions = "scatter" in requested, "directions" in requested
    # a wide product leaves registers for fewer tokens
    rows = (64 if block <= 64 else 32) if scatter else max(4, 2048 // block)
    # D x D numbers are written per program: it must read many more
    steps, chunks = _split(batch * heads, tokens, rows, fewest=8 * block // rows if scatter else 1)
    new = x.new_empty
    norm = new(batch, heads, tokens, dtype=torch.float32) if "norm" in requested else None
    partial: dict[str, Tensor] = {}
    lead = (batch, chunks, heads)
    if directions:
        partial["sums"] = new(*lead, width + 1, dtype=torch.float32)
    if scatter:
        partial |= {
            "counts": new(lead[:2], dtype=torch.float32),
            "means": new(*lead, width, dtype=torch.float32),
            "scatters": new(*lead, width, width, dtype=torch.float32),
        }
    unused = x if norm is None else norm
    launch = Launch(
        moments.moments_kernel,
        batch * chunks * heads,
        {
            "x": x,
            "mask": x if mask is None else as_bytes(mask.contiguous()),
            "norms": unused,
            **{name: partial.get(name, unused) for name in ("sums", "counts", "means", "scatters")},
            **strides("x", "blhnd", x),
            "inner": inner,
            "heads": heads,
            "tokens": tokens,
            "chunks": chunks,
        },
        {
            "D": width,
            "BLOCK_D": block,
            "ROWS": rows,
            "STEPS": steps,
            "MASKED": mask is not None,
            "NORM": norm is not None,
            "DIRECTIONS": directions,
            "SCATTER": scatter,
            "PARTS": 3 if x.dtype == torch.float32 else 2,
            "UPCAST": interpreted(),
        },
        {"num_warps": 8 if scatter and block > 64 else 4, "num_stages": 2, "enable_fp_fusion": True},
    )
    return launch, norm, partial


def gram_launch(
    x: Float[Tensor, "batch *heads tokens dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    capability: tuple[int, int],
) -> tuple[Launch, dict[str, Float[Tensor, " ..."]]]:
    """Prepare the kernel for the scatter of wide vectors, and the moments about a shift that it fills."""
    from lightning_geo.kernels.triton import gram

    x = x if x.dim() == 5 else x[:, None]
    batch, layers, inner, tokens, width = x.shape
    heads = layers * inner
    tile = gram_tile_for(x.dtype, capability)
    blocks = -(-width // tile.features)
    blocks = blocks * (blocks + 1) // 2
    tiles = -(-batch * tokens // tile.tokens)
    # as many programs as a large device runs at once, of 512 tokens at least: each writes a block of numbers
    chunks = max(1, min(1024 // (tile.warps * heads * blocks), tiles * tile.tokens // 512))
    steps = -(-tiles // chunks)
    chunks = -(-tiles // steps)
    partial = {
        "counts": x.new_empty(chunks, dtype=torch.float32),
        "shifts": x.new_empty(heads, width, dtype=torch.float32),
        "sums": x.new_empty(chunks, heads, width, dtype=torch.float32),
        "products": x.new_empty(chunks, heads, width, width, dtype=torch.float32),
    }
    launch = Launch(
        gram.gram_kernel,
        blocks * heads * chunks,
        {
            "x": x,
            "mask": x if mask is None else as_bytes(mask.contiguous()),
            **partial,
            **strides("x", "blhnd", x),
            "inner": inner,
            "heads": heads,
            "tokens": tokens,
            "total": batch * tokens,
            "steps": steps,
        },
        {
            "D": width,
            "BLOCK": tile.features,
            "ROWS": tile.tokens,
            "MASKED": mask is not None,
            "PARTS": 3 if x.dtype == torch.float32 else 2,
            "UPCAST": interpreted(),
        },
        {"num_warps": tile.warps, "num_stages": 2, "enable_fp_fusion": True},
    )
    return launch, partial


def _all(shape: tuple[int, int], device: torch.device) -> Bool[Tensor, "batch tokens"]:
    return torch.ones(shape, dtype=torch.bool, device=device)


def _split(sequences: int, tokens: int, rows: int, fewest: int = 1) -> tuple[int, int]:
    """Steps per program, a power of two so that few kernels are compiled, and programs per sequence."""
    requested = max(fewest, tokens * sequences // (rows * _PROGRAMS))
    steps = min(_power(requested), 64, _power(-(-tokens // rows)))
    return steps, -(-tokens // (rows * steps))


def _power(n: int) -> int:
    """The power of two at or above n."""
    return 1 << max(0, n - 1).bit_length()
