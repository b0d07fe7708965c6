"""What the probe needs to know of the models that it is replayed on."""

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

    #: Modules by name.
    models: dict[str, nn.Module]
    #: The LightningModule that they are in; None if it does not matter.
    root: nn.Module | None
    #: Tells calls that are given data from calls that are given what parameters computed.
    dependence: Dependence | None

    @property
    def device(self) -> torch.device:
        """Where the models are."""

    def divides(self, recorded: ProbeCall) -> bool:
        """Whether the first axis of a call holds sequences."""

    def replay(self, share: Share, metrics: tuple[str, ...]) -> Exception | None:
        """Run recorded calls once more; returns what went wrong."""

    def because(self, reasons: Mapping[str, str]) -> str:
        """Why models have no recorded call, in words."""
