"""Mergeable sums of one layer: they add over sequences, micro-batches and ranks.

Everything is either a sum (float64, so that raw second moments survive a large mean) or a maximum. A metric
with a value for each sequence is kept as the sum of these values and the number of sequences that had one;
covariances as count, sum and raw second moment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_geo.functional._tensors import exact_dtype
from lightning_geo.kernels.precision import is_finite

__all__ = ["LayerSums", "add_maximum", "add_moments", "add_values", "covariances"]


@dataclass
class LayerSums:
    """Sums and maxima of one layer by name; ``names`` says which metrics a stacked one holds."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    heads: int = 0

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum."""
        value = value.to(exact_dtype(value))
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def void(self, metrics: Collection[str]) -> None:
        """Let metrics, by name without part, have no value, whatever other ranks add."""
        for group, names in self.names.items():
            for place, name in enumerate(names):
                if name.partition(".")[0] in metrics:
                    total = self.sums[f"{group}.total"].clone()
                    total[place] = torch.nan
                    self.sums[f"{group}.total"] = total
        for name in self.maxima:
            if name.partition(".")[0] in metrics:  # NaN need not survive a maximum
                self.maxima[name] = torch.full_like(self.maxima[name], torch.inf)


def add_values(
    layers: Sequence[LayerSums],
    group: str,
    names: tuple[str, ...],
    values: Tensor,
    variances: Tensor | None = None,
) -> None:
    """Add values by sequence to the sums of L layers; one that is not finite does not count.

    Args:
        layers: L layers.
        group: Which of a layer's groups of metrics they are.
        names: Of the P metrics.
        values: ``[L, P, B, ...]``.
        variances: Of these values, where they are estimates.
    """
    if not names:
        return
    exact = exact_dtype(values)
    defined = is_finite(values)
    # calls of one layer may have different metrics: sums of other names must not be added up
    group = f"{group}({' '.join(names)})"
    parts = {
        "total": torch.where(defined, values, 0.0).sum(2, dtype=exact),
        "count": defined.sum(2, dtype=exact),
    }
    if variances is not None:
        parts["variance"] = torch.where(defined, variances, 0.0).sum(2, dtype=exact)
    for part, sums in parts.items():
        for layer, value in zip(layers, sums, strict=True):
            layer.names[group] = names
            layer.add(f"{group}.{part}", value)


def add_maximum(layers: Sequence[LayerSums], name: str, values: Tensor) -> None:
    """Take the largest of values by sequence, ``[L, B, H]``, into the maxima of L layers."""
    largest = torch.where(is_finite(values), values, -torch.inf).amax(1)
    for layer, value in zip(layers, largest, strict=True):
        known = layer.maxima.get(name)
        layer.maxima[name] = value if known is None else torch.maximum(known, value)


def add_moments(
    layers: Sequence[LayerSums], names: Sequence[str], count: Tensor, mean: Tensor, scatter: Tensor
) -> None:
    """Add count, sum and raw second moment of vectors to the sums of L layers.

    Args:
        layers: L layers.
        names: Of the vectors, one for each layer.
        count: How many vectors, the same for all layers.
        mean: ``[L, h, D]``.
        scatter: ``[L, h, D, D]``, about the mean.
    """
    exact = exact_dtype(mean)
    count, mean = count.to(exact), mean.to(exact)
    total = mean * count
    second = torch.addcmul(scatter.to(exact), total[..., :, None], mean[..., None, :])
    for i, (layer, name) in enumerate(zip(layers, names, strict=True)):
        layer.add(f"{name}.count", count)
        layer.add(f"{name}.sum", total[i])
        layer.add(f"{name}.second", second[i])


def covariances(layers: Sequence[LayerSums], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return centred covariances of vectors from their sums.

    Args:
        layers: L layers, one of them several times where several of its sums are of one shape.
        names: Of the vectors, one for each layer.

    Returns:
        [L, h, D, D] in float64, NaN for fewer than two tokens; and [L], whether something was not finite.
    """
    count, total, second = (
        torch.stack([layer.sums[f"{name}.{part}"] for layer, name in zip(layers, names, strict=True)])
        for part in ("count", "sum", "second")
    )
    broken = ~is_finite(total).flatten(1).all(1)
    count = torch.where(count > 1, count, torch.nan)[:, None, None]
    mean = total / count
    covariance = (second / count[..., None]).addcmul_(mean[..., :, None], mean[..., None, :], value=-1)
    return covariance, broken
