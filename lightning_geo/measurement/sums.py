"""Mergeable sums of one layer: they add over sequences, micro-batches and ranks.

Everything is either a sum (float64, so that raw second moments survive a large mean) or a maximum. A metric
of kind ``row``, ``sequence`` or ``tokens`` is kept as the sum of its per-sequence values and the number of
sequences that had one; covariances as count, sum and raw second moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_geo.functional import HeadMoments
from lightning_geo.functional._tensors import exact_dtype
from lightning_geo.metrics.selection import standard_error

__all__ = ["LayerStatistics"]


@dataclass
class LayerStatistics:
    """Sums and maxima of one layer by name; ``names`` says which metrics a stacked one holds."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    heads: int = 0

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum."""
        value = value.to(exact_dtype(value))
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def add_values(
        self, group: str, names: tuple[str, ...], values: Tensor, variances: Tensor | None = None
    ) -> None:
        """Add per-sequence values [P, B, ...] of P metrics; one that is not finite does not count.

        Args:
            group: Which of a layer's groups of metrics they are.
            names: Of the P metrics.
            values: Their means.
            variances: Of these means, where they are estimates.
        """
        if not names:
            return
        defined = values.isfinite()
        # calls of one layer may have different metrics: sums of other names must not be added up
        group = f"{group}({' '.join(names)})"
        self.names[group] = names
        self.add(f"{group}.total", torch.where(defined, values, 0.0).sum(1))
        self.add(f"{group}.count", defined.sum(1))
        if variances is not None:
            self.add(f"{group}.variance", torch.where(defined, variances, 0.0).sum(1))

    def add_maximum(self, name: str, values: Tensor) -> None:
        """Take the largest of per-sequence values [B, H]."""
        value = torch.where(values.isfinite(), values, -torch.inf).amax(0)
        self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value

    def add_moments(self, name: str, moments: HeadMoments) -> None:
        """Add count, sum and raw second moment of vectors."""
        count, mean, scatter = moments.count, moments.mean, moments.scatter
        assert count is not None
        assert mean is not None
        assert scatter is not None
        mean = mean.to(exact_dtype(mean))
        self.add(f"{name}.count", count)
        self.add(f"{name}.sum", mean * count)
        second = scatter.to(mean.dtype)
        self.add(f"{name}.second", torch.addcmul(second, (mean * count)[:, :, None], mean[:, None, :]))

    def covariance(self, name: str) -> Tensor | None:
        """Centred covariance [h, D, D] in float64, NaN for fewer than two tokens; ``None`` if absent."""
        if f"{name}.count" not in self.sums:
            return None
        count, total, second = (self.sums[f"{name}.{part}"] for part in ("count", "sum", "second"))
        count = torch.where(count > 1, count.to(total.dtype), torch.nan)
        mean = total / count
        return (second / count).addcmul_(mean[:, :, None], mean[:, None, :], value=-1)

    def mean_values(self) -> dict[str, Tensor]:
        """Mean over sequences of every metric kept by value, and the maxima; NaN if there was none.

        Estimates come with their standard errors: sequences are the strata of one sample of rows.
        """
        values: dict[str, Tensor] = {}
        kinds: dict[str, list[str]] = {}
        for group in self.names:
            kinds.setdefault(group.partition("(")[0], []).append(group)
        for groups in kinds.values():
            names, count, total, variance = self._together(groups)
            values.update(zip(names, total / count, strict=True))
            if variance is not None:
                values.update(zip(map(standard_error, names), variance.sqrt() / count, strict=True))
        for name, value in self.maxima.items():
            values[name] = torch.where(value.isfinite(), value, torch.nan)
        return values

    def _together(self, groups: list[str]) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor | None]:
        """Names, counts, totals and variances of groups of one kind, added up where names are in several."""
        if len(groups) == 1:
            group = groups[0]
            count, total = self.sums[f"{group}.count"], self.sums[f"{group}.total"]
            return self.names[group], count, total, self.sums.get(f"{group}.variance")
        names = tuple(dict.fromkeys(name for group in groups for name in self.names[group]))

        def added(part: str) -> Tensor:
            rows: dict[str, Tensor] = {}
            for group in groups:
                for name, value in zip(self.names[group], self.sums[f"{group}.{part}"], strict=True):
                    rows[name] = rows[name] + value if name in rows else value
            return torch.stack([rows[name] for name in names])

        estimated = f"{groups[0]}.variance" in self.sums
        return names, added("count"), added("total"), added("variance") if estimated else None
