"""Moments of a role's vectors that wait for those of other layers, to be added up with them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_geo.kernels import HeadMoments, moments_layout, moments_nbytes
from lightning_geo.measurement.sums import LayerSums
from lightning_geo.observe import CallKey

__all__ = ["RoleVectors", "WaitingMoments"]


class RoleVectors(NamedTuple):
    """One role's vectors of a call, and what is needed of them."""

    layer: LayerSums
    role: str
    heads: int
    requested: frozenset[str]
    key: CallKey
    #: of the call, by role: what functions of several roles read
    directions: dict[str, tuple[Tensor, Tensor]]


class WaitingMoments(NamedTuple):
    """The moments of vectors that one operation has read, those of one owner after the other."""

    owners: list[RoleVectors]
    moments: HeadMoments

    @property
    def layout(self) -> tuple[object, ...]:
        """Equal for what is added up together."""
        return self.owners[0].layer.heads, self.owners[0].heads, moments_layout(self.moments)

    @property
    def nbytes(self) -> int:
        """Bytes that wait."""
        return moments_nbytes(self.moments)
