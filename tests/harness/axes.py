"""From tokens first to the axes on which a model attends, and back."""

from __future__ import annotations

from torch import Tensor

from harness.description import Description

__all__ = ["arrange", "restore"]


def arrange(x: Tensor, d: Description) -> Tensor:
    """[B, N, H, D], or [B, W, n, H, D] with windows, to the description's axes."""
    axes = d.axes
    if axes == "bnhd":
        return x
    if axes == "bhnd":
        return x.transpose(1, 2)
    if axes == "folded":
        return x.transpose(1, 2).flatten(0, 1)
    if axes == "folded_h_major":
        return x.permute(2, 0, 1, 3).flatten(0, 1)
    if axes == "heads_first":
        return x.permute(2, 0, 1, 3)
    if axes in ("single", "list"):
        return x.squeeze(2)
    if axes == "windows_bwhnd":
        return x.transpose(2, 3)
    if axes == "windows_bhwnd":
        return x.permute(0, 3, 1, 2, 4)
    assert axes == "grouped"
    return x.unflatten(2, (d.kv_heads, -1)).permute(0, 2, 3, 1, 4)


def restore(x: Tensor, d: Description, flat: bool = True) -> Tensor:
    """Undo :func:`arrange`.

    Args:
        x: On the description's axes.
        d: The description.
        flat: Whether to return [B, N, H·D] (all windows in line); else [B (·W), n, H, D].
    """
    axes = d.axes
    if axes == "bhnd":
        x = x.transpose(1, 2)
    elif axes == "folded":
        x = x.unflatten(0, (d.batch, -1)).transpose(1, 2)
    elif axes == "folded_h_major":
        x = x.unflatten(0, (-1, d.batch)).permute(1, 2, 0, 3)
    elif axes == "heads_first":
        x = x.permute(1, 2, 0, 3)
    elif axes in ("single", "list"):
        x = x[:, :, None]
    elif axes == "windows_bwhnd":
        x = x.transpose(2, 3)
    elif axes == "windows_bhwnd":
        x = x.permute(0, 2, 3, 1, 4)
    elif axes == "grouped":
        x = x.permute(0, 3, 1, 2, 4).flatten(2, 3)
    if not flat:
        return x.flatten(0, 1) if d.windows > 1 else x
    return x.flatten(-2).flatten(1, -2) if d.windows > 1 else x.flatten(-2)
