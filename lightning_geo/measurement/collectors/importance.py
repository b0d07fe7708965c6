"""How much the loss depends on each head: gradients from a backward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.sums import LayerSums, add_values
from lightning_geo.observe import CallKey

__all__ = ["Importance"]


class Importance(Collector):
    """Importance of heads to the losses of sequences, which is computed elsewhere and added here.

    Args:
        metrics: Stored names of the metrics to measure.
    """

    offers = frozenset({"head_gradient"})

    def add(self, layers: Mapping[CallKey, LayerSums], by_call: Mapping[CallKey, Tensor]) -> None:
        """Add the importance [sequence, head] of heads to the losses of sequences."""
        for key, value in by_call.items():
            if key in layers:
                add_values([layers[key]], "importance", ("importance",), value[None, None])

    def expect(self, layers: Mapping[CallKey, LayerSums], device: torch.device) -> None:
        """Make room for it: whatever happens to a rank's sequences, all ranks need the same layout."""
        for layer in layers.values():
            none = torch.full((1, 1, 1, layer.heads), torch.nan, device=device)
            add_values([layer], "importance", ("importance",), none)
