"""Sums of tokens with random signs as a Triton kernel.

This module loads without Triton, so that it can give a reason when it cannot take a call.
"""

from __future__ import annotations

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
from lightning_geo.kernels.triton.tiles import gram_tile_for
from lightning_geo.utils.shapes import Bool, Float

__all__ = ["sketch", "sketch_launch", "unsupported"]


def unsupported(
    operation: str,
    x: Float[Tensor, "tokens layers features"],
    real: Bool[Tensor, " tokens"] | None,
    draws: Float[Tensor, "layers rows tokens"],
    before: Float[Tensor, "layers rows features"] | None,
) -> str | None:
    """Return the reason why the kernel cannot take a call; None if it can."""
    reason = missing(x.device)
    if reason is None and x.dtype not in DTYPES:
        reason = f"a dtype of {x.dtype}"
    return "it has no tokens" if reason is None and x.numel() == 0 else reason


def sketch(
    x: Float[Tensor, "tokens layers features"],
    real: Bool[Tensor, " tokens"] | None,
    draws: Float[Tensor, "layers rows tokens"],
    before: Float[Tensor, "layers rows features"] | None,
) -> tuple[Float[Tensor, "layers rows features"], Float[Tensor, "layers rows"]]:
    """Compute :func:`lightning_geo.kernels.sketches.sketch` on a CUDA device."""
    with torch.no_grad(), on_device(x.device):
        launch, sketches, signs = sketch_launch(x, real, draws, before, capability_of(x.device))
        launch.run()
        return sketches, signs


def sketch_launch(
    x: Float[Tensor, "tokens layers features"],
    real: Bool[Tensor, " tokens"] | None,
    draws: Float[Tensor, "layers rows tokens"],
    before: Float[Tensor, "layers rows features"] | None,
    capability: tuple[int, int],
) -> tuple[Launch, Float[Tensor, "layers rows features"], Float[Tensor, "layers rows"]]:
    """Prepare the kernel, and the sketches and sums of signs that it fills."""
    from lightning_geo.kernels.triton.sketch import sketch_kernel

    tokens, layers, width = x.shape
    rows = draws.shape[1]
    tile = gram_tile_for(x.dtype, capability)
    sketches = draws.new_empty(layers, rows, width) if before is None else before
    signs = draws.new_empty(layers, rows)
    launch = Launch(
        sketch_kernel,
        layers * -(-rows // tile.features) * -(-width // tile.features),
        {
            "x": x,
            **strides("x", "nld", x),
            "mask": x if real is None else as_bytes(real.contiguous()),
            "draws": draws,
            "sketches": sketches,
            "signs": signs,
            "tokens": tokens,
        },
        {
            "D": width,
            "COUNT": rows,
            "BLOCK": tile.features,
            "ROWS": tile.tokens,
            "MASKED": real is not None,
            "CONTINUES": before is not None,
            "UPCAST": interpreted(),
        },
        {"num_warps": tile.warps, "num_stages": 2, "enable_fp_fusion": True},
    )
    return launch, sketches, signs
