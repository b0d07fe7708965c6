"""The protocol by which the probe accesses the models that it is replayed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from lightning_geo.observe.replay.dependence import Dependence
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.probe import Share

__all__ = ["Candidates"]


class Candidates(Protocol):
    """Models that may be observed, and how calls are tried on them."""

    @property
    def models(self) -> dict[str, nn.Module]:
        """Modules by name."""

    @property
    def root(self) -> nn.Module | None:
        """The LightningModule that contains them; None without one."""

    @property
    def dependence(self) -> Dependence | None:
        """Distinguishes calls on data from calls whose inputs depend on parameters."""

    @property
    def device(self) -> torch.device:
        """Device of the models."""

    def divides(self, recorded: ProbeCall) -> bool:
        """Whether the first axis of a call holds sequences."""

    def replay(
        self,
        share: Share | None,
        metrics: tuple[str, ...],
        unrecorded: Mapping[str, str] | None = None,
        failure: Exception | None = None,
    ) -> Exception | None:
        """Replay recorded calls; returns the error if one fails, or if there was one before."""

    def because(self, reasons: Mapping[str, str]) -> str:
        """Explain why models have no recorded call."""
