"""Mergeable sums of one layer: they add over sequences, micro-batches and ranks.

Everything is either a sum (float64, so that raw second moments survive a large mean) or a maximum. A metric
with a value for each sequence is kept as the sum of these values and the number of sequences that had one;
covariances as count, sum and raw second moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_geo.functional._tensors import exact_dtype
from lightning_geo.kernels.precision import is_finite
from lightning_geo.kernels.workspace import constant, where_defined
from lightning_geo.observe import HeadSlice

__all__ = [
    "LayerSums",
    "add_maximum",
    "add_moments",
    "add_values",
    "covariances",
    "joined",
    "repeated",
    "settle_values",
    "taken",
    "void_values",
]

#: Groups of a layer, and values in them, that wait to be added up: a long sample has many calls.
_WAITING, _WAITING_VALUES = 64, 1 << 17


class _Values(NamedTuple):
    """Values by sequence [P, B, ...] of a group of metrics, and their variances where they are estimates."""

    group: str
    values: Tensor
    variances: Tensor | None


@dataclass
class LayerSums:
    """Sums and maxima of one layer by name.

    Args:
        sums: Of a group of metrics, total and count of values [2, P, ...], and the total of their variances
            [3, P, ...] where they are estimates.
        maxima: By metric.
        names: Which metrics a group holds.
        waiting: Values that :func:`settle_values` adds to the sums.
        heads: Heads of the layer that are here.
        slice: Which ones they are, until :func:`.place_heads`.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    waiting: list[_Values] = field(default_factory=list)
    heads: int = 0
    slice: HeadSlice = field(default_factory=HeadSlice)

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum; variances that one of the two lacks are 0."""
        value = value.to(exact_dtype(value))
        known = self.sums.get(name)
        if known is not None and known.shape[:1] != value.shape[:1]:
            short, long = sorted((known, value), key=len)
            self.sums[name] = long.clone()
            self.sums[name][: len(short)] += short
            return
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def void(self, metrics: Collection[str]) -> None:
        """Void metrics, by name without part: they have no value, whatever other ranks add."""
        for group, names in self.names.items():
            for place, name in enumerate(names):
                if name.partition(".")[0] in metrics:
                    parts = self.sums[group].clone()
                    parts[0, place] = torch.nan
                    self.sums[group] = parts
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

    They wait for :func:`settle_values`, which takes one operation where several groups have one shape.

    Args:
        layers: L layers.
        group: Which of a layer's groups of metrics they are.
        names: Of the P metrics.
        values: ``[L, P, B, ...]``; nothing may write to them afterwards.
        variances: Of these values, where they are estimates.
    """
    if not names:
        return
    group = _named(group, names)
    values = values.detach()
    for i, layer in enumerate(layers):
        layer.names[group] = names
        layer.waiting.append(_Values(group, values[i], None if variances is None else variances[i]))
        waiting = sum(entry.values.numel() for entry in layer.waiting)
        if waiting > _WAITING_VALUES or len(layer.waiting) > _WAITING:
            settle_values([layer])


def void_values(
    layer: LayerSums, group: str, names: tuple[str, ...], shape: tuple[int, ...], like: Tensor
) -> None:
    """Void metrics that are kept by value: they have none in this sample, whatever calls and ranks add.

    Args:
        layer: The layer.
        group: As for :func:`add_values`.
        names: Of the P metrics.
        shape: Of one sequence's value.
        like: Gives the device.
    """
    if names:
        layer.names[_named(group, names)] = names
        parts = like.new_full((2, len(names), *shape), torch.nan, dtype=torch.float32)
        layer.add(_named(group, names), parts)


def _named(group: str, names: tuple[str, ...]) -> str:
    # calls of one layer may have different metrics: sums of other names must not be added up
    return f"{group}({' '.join(names)})"


def settle_values(layers: Iterable[LayerSums]) -> None:
    """Add the values that wait to the sums of their layers, those of one shape together."""
    alike: dict[tuple[object, ...], list[tuple[LayerSums, _Values]]] = {}
    for layer in layers:
        for entry in layer.waiting:
            x = entry.values
            alike.setdefault((x.shape[1:], x.dtype, x.device, entry.variances is None), []).append(
                (layer, entry)
            )
        layer.waiting = []
    with torch.no_grad():
        for entries in alike.values():
            values = torch.cat([entry.values for _, entry in entries])
            defined = is_finite(values)
            zero = constant(0.0, values)
            parts = [torch.where(defined, values, zero), defined]
            variances = [entry.variances for _, entry in entries if entry.variances is not None]
            if variances:
                parts.append(torch.where(defined, torch.cat(variances), zero))
            # [2 or 3, P, ...]
            sums = torch.stack([part.to(values.dtype) for part in parts]).sum(2, dtype=exact_dtype(values))
            pieces = sums.split([len(entry.values) for _, entry in entries], 1)
            for (layer, entry), piece in zip(entries, pieces, strict=True):
                layer.add(entry.group, piece)


def add_maximum(layers: Sequence[LayerSums], name: str, values: Tensor) -> None:
    """Take the largest of values by sequence, ``[L, B, H]``, into the maxima of L layers."""
    largest = torch.where(is_finite(values), values, constant(-torch.inf, values)).amax(1)
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
    count = where_defined(count > 1, count)[:, None, None]
    mean = total / count
    covariance = (second / count[..., None]).addcmul_(mean[..., :, None], mean[..., None, :], value=-1)
    return covariance, broken


def taken(x: Tensor, places: list[int], axis: int = 0) -> Tensor:
    """Entries of an axis; a view where they are equally far apart, as those of a role are."""
    step = places[1] - places[0] if len(places) > 1 else 1
    spread = range(places[0], places[-1] + 1, step)
    if places != [*spread]:
        return torch.stack([x.select(axis, i) for i in places], axis)
    return x[(slice(None),) * axis + (slice(places[0], places[-1] + 1, step),)]


def repeated(x: Tensor, times: int, dim: int) -> Tensor:
    """Each entry of an axis so many times: grouped queries share the numbers of their key head."""
    return x if times == 1 else x.repeat_interleave(times, dim)


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors one after the other; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
