"""The parts of an observed attention call that metric functions may read."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightning_geo.kernels import AttentionProblem
from lightning_geo.utils.shapes import Float

__all__ = ["ObservedScores", "ScoreSpectra"]


class ScoreSpectra(Protocol):
    """The source of the spectra of scores: an attention call, or the products kept of several."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the queries."""

    @property
    def spectrum(self) -> Float[Tensor, "*batch sizes"]:
        """``[..., H, D]``, the result of :func:`lightning_geo.functional.score_spectra.score_spectrum`."""

    @property
    def symmetric_spectrum(self) -> Float[Tensor, "*batch sizes"]:
        """``[..., H, 2 D]``, likewise of the symmetric part."""


class ObservedScores(ScoreSpectra, Protocol):
    """An attention call as functions that read ``scores`` or ``attended`` take it."""

    @property
    def problem(self) -> AttentionProblem:
        """Queries and keys as attention used them, and which pairs are visible."""

    @property
    def norm_shares(self) -> Float[Tensor, "3 batch heads"]:
        """``[3, B, H]``, the result of :func:`lightning_geo.kernels.pairs.norm_shares`."""

    @property
    def shares(self) -> dict[str, Float[Tensor, "batch heads"]]:
        """``[B, H]`` each, the result of :func:`lightning_geo.functional.gates.gate_shares`."""
