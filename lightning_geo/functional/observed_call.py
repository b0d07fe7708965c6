"""The parts of an observed attention call that metric functions may read."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lightning_geo.kernels import AttentionProblem, HeadMoments
from lightning_geo.utils.shapes import Bool, Float

__all__ = ["ObservedCall", "ObservedScores"]


class ObservedCall(Protocol):
    """An attention call as functions of kind ``sequence`` read it."""

    @property
    def query(self) -> HeadMoments:
        """Lengths and directions of the queries."""

    @property
    def key(self) -> HeadMoments:
        """Those of the keys: Hk heads, H a multiple of Hk."""

    @property
    def key_mask(self) -> Bool[Tensor, "batch keys"] | None:
        """``[B, Nk]`` bool, True = real token; None if all are."""

    @property
    def received(self) -> Float[Tensor, "batch heads keys"]:
        """``[B, H, Nk]``, the attention that each key receives, for functions that read it."""


class ObservedScores(Protocol):
    """An attention call as functions of kind ``scores`` read it."""

    @property
    def problem(self) -> AttentionProblem:
        """Queries and keys as attention used them, and which pairs are visible."""

    @property
    def norm_shares(self) -> Float[Tensor, "3 batch heads"]:
        """``[3, B, H]``, the result of :func:`lightning_geo.kernels.pairs.norm_shares`."""

    @property
    def shares(self) -> dict[str, Float[Tensor, "batch heads"]]:
        """``[B, H]`` each, the result of :func:`lightning_geo.functional.gates.gate_shares`."""
