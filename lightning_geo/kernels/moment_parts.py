"""Moments of role vectors as kernels leave them, and their merging: one operation serves several calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_geo.kernels.vectors import HeadMoments
from lightning_geo.utils._torch import identity_of
from lightning_geo.utils.shapes import Bool

__all__ = ["MomentParts", "merge_parts"]


@dataclass(frozen=True)
class MomentParts:
    """Moments that a kernel left unmerged: those of calls that are alike are merged in one go.

    Args:
        valid: Bool ``[B, N]``: real tokens.
        parts: Tensors by name.
        axes: The heads' axis of each; None for a tensor that all heads share.
        merge: Makes the fields of ``HeadMoments`` of the parts.
    """

    valid: Bool[Tensor, "batch tokens"]
    parts: Mapping[str, Tensor]
    axes: Mapping[str, int | None]
    merge: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

    @classmethod
    def of(cls, moments: HeadMoments) -> MomentParts:
        """Moments that are merged already."""
        fields = {name: x for name, x in vars(moments).items() if x is not None and name != "valid"}
        axes = {"norm": 1, "directions": 1, "directed": 1, "count": None, "mean": 0, "scatter": 0}
        return cls(moments.valid, fields, {name: axes[name] for name in fields}, dict)

    @property
    def layout(self) -> tuple[object, ...]:
        """Equal for calls that :func:`merge_parts` takes together: their heads may be any number."""
        shapes = (
            (name, x.dtype, *(n for axis, n in enumerate(x.shape) if axis != self.axes[name]))
            for name, x in self.parts.items()
        )
        return self.merge, identity_of(self.valid), *shapes

    @property
    def heads(self) -> int:
        """Number of heads."""
        name, axis = next((name, axis) for name, axis in self.axes.items() if axis is not None)
        return self.parts[name].shape[axis]

    @property
    def nbytes(self) -> int:
        """Bytes that they hold."""
        return sum(x.nbytes for x in self.parts.values())


def merge_parts(calls: Sequence[MomentParts]) -> HeadMoments:
    """Merge the parts of calls of one layout: the moments of all their heads, one call after the other."""
    first = calls[0]
    parts: dict[str, Tensor] = {}
    for name, axis in first.axes.items():
        every = [call.parts[name] for call in calls]
        parts[name] = every[0] if axis is None or len(calls) == 1 else torch.cat(every, axis)
    return HeadMoments(first.valid, **first.merge(parts))
