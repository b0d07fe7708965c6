"""Merges moments of parts of the tokens, one part from each program of a kernel.

This module loads without Triton.
"""

from __future__ import annotations

from torch import Tensor

from lightning_geo.kernels.triton.launch import Launch
from lightning_geo.utils.shapes import Float

__all__ = ["directions_of", "merge_launch", "merged"]

# features along each side of a block of a scatter, and parts that are read at once
_BLOCK, _PARTS = 32, 4


def directions_of(
    sums: Float[Tensor, "batch chunks *heads columns"],
) -> dict[str, Float[Tensor, "batch ..."]]:
    """Return ``directions`` and ``directed`` of sums over chunks, ``[B, chunks, …, D + 1]``.

    The last number counts how many unit vectors are in the sum in front of it.
    """
    whole = sums[:, 0] if sums.shape[1] == 1 else sums.sum(1)
    return {"directions": whole[..., :-1], "directed": whole[..., -1]}


def merged(
    counts: Float[Tensor, " parts"],
    sums: Float[Tensor, "parts heads dim"],
    products: Float[Tensor, "parts heads dim dim"],
    shifts: Float[Tensor, "heads dim"] | None = None,
) -> dict[str, Float[Tensor, " ..."]]:
    """Merge moments of P parts on the current device.

    Args:
        counts: ``[P]``, how many tokens are behind each.
        sums: ``[P, H, D]``, of the tokens less a shift; without one, their means.
        products: ``[P, H, D, D]``, of the tokens less the shift; without one, less these means.
        shifts: ``[H, D]``.

    Returns:
        ``count``, ``mean`` and ``scatter`` of :class:`.HeadMoments`.
    """
    if len(counts) == 1 and shifts is None:
        return {"count": counts[0], "mean": sums[0], "scatter": products[0]}
    launch, moments = merge_launch(counts, sums, products, shifts)
    launch.run()
    return moments


def merge_launch(
    counts: Float[Tensor, " parts"],
    sums: Float[Tensor, "parts heads dim"],
    products: Float[Tensor, "parts heads dim dim"],
    shifts: Float[Tensor, "heads dim"] | None,
) -> tuple[Launch, dict[str, Float[Tensor, " ..."]]]:
    """Prepare the kernel that merges moments, and the tensors that it fills."""
    from lightning_geo.kernels.triton.merging import merge_kernel

    parts, heads, width = sums.shape
    moments = {
        "count": counts.new_empty(()),
        "mean": sums.new_empty(heads, width),
        "scatter": products.new_empty(heads, width, width),
    }
    launch = Launch(
        merge_kernel,
        heads * (-(-width // _BLOCK)) ** 2,
        {
            "counts": counts,
            # means are about that of the first part: they differ little where they are large
            "shifts": sums if shifts is None else shifts,
            "sums": sums,
            "products": products,
            **moments,
            "parts": parts,
            "heads": heads,
        },
        {"D": width, "BLOCK": _BLOCK, "PARTS": _PARTS, "SHIFTED": shifts is not None},
        {"num_warps": 4, "enable_fp_fusion": True},
    )
    return launch, moments
