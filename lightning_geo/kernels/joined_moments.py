"""Moments of several calls as one call's of all their heads, so that one operation serves them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_geo.kernels.vectors import HeadMoments
from lightning_geo.utils._torch import identity_of

__all__ = ["join_heads", "moments_layout", "moments_nbytes"]

#: The heads' axis of each field; of the others, calls of one layout have one in common.
_AXES = {"norm": 1, "directions": 1, "directed": 1, "mean": 0, "scatter": 0}


def join_heads(calls: Sequence[HeadMoments]) -> HeadMoments:
    """Join the moments of calls of one :func:`moments_layout`, the heads of one call after the other."""
    if len(calls) == 1:
        return calls[0]
    fields = dict(vars(calls[0]))
    for name, axis in _AXES.items():
        if fields[name] is not None:
            fields[name] = torch.cat([getattr(call, name) for call in calls], axis)
    return HeadMoments(**fields)


def moments_layout(moments: HeadMoments) -> tuple[object, ...]:
    """Return a key that is equal for moments of the same tokens, whatever their number of heads."""
    shapes = (
        (name, x.dtype, *(size for place, size in enumerate(x.shape) if place != axis))
        for name, axis in _AXES.items()
        if (x := getattr(moments, name)) is not None
    )
    return identity_of(moments.valid), *shapes


def moments_nbytes(moments: HeadMoments) -> int:
    """Return the bytes that moments hold, without the flags, which calls may share."""
    return sum(x.nbytes for name in _AXES if (x := getattr(moments, name)) is not None)
