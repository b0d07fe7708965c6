"""Metrics of one stack as they are derived, and their one transfer to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_geo.functional._decompositions import dividing_among_threads
from lightning_geo.kernels.precision import is_finite
from lightning_geo.kernels.workspace import where_defined
from lightning_geo.measurement.batches import limit_of
from lightning_geo.measurement.sums import LayerSums
from lightning_geo.metrics.selection import spec_of, standard_error
from lightning_geo.observe import CallKey
from lightning_geo.utils.device_copy import ToHost

__all__ = ["Bases", "DerivedStack", "Transfer", "arrays_of", "in_parts", "layers_by_shape"]

#: ``stack -> role -> [layer, head, feature, component]``, NaN where a layer has none.
Bases = Mapping[str, Mapping[str, Tensor]]

#: Bytes of the tensors of layers that are derived at a time.
_PART_BYTES = 1 << 26

#: Stands for what is not finite among the names of values.
_BROKEN = "broken"


@dataclass
class DerivedStack:
    """The sums of one stack, and the values that collectors derive from them.

    Args:
        layers: Sums of attention by layer index, of the layers that are reported.
        keys: The attention calls of these layers.
        heads: Heads of all layers; 0 for one without attention.
        rank: Dimensions of subspaces.
        baseline: Bases by role that ``drift`` is against; None for this sample's own.
        previous: Bases by role that ``velocity`` is against.
        blocks: Path of the block of each layer, and the attention call that it belongs to.
    """

    layers: dict[int, LayerSums]
    keys: dict[int, CallKey]
    heads: list[int]
    rank: int
    baseline: Mapping[str, Tensor] | None
    previous: Mapping[str, Tensor] | None
    blocks: dict[int, tuple[str, CallKey]] = field(default_factory=dict)
    bases: dict[str, Tensor] = field(default_factory=dict)
    #: indices of layers, and [L, H, H]
    similarities: list[tuple[Sequence[int], Tensor]] = field(default_factory=list)
    #: index of a layer -> metric -> [h, h], what its heads have in common by their weights
    overlaps: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    #: index of a layer -> on the host: pooled attention [H, c, c], how many tokens, and their ids if known
    patterns: dict[int, list[Tensor]] = field(default_factory=dict)
    #: names, indices of layers, and [L, P, ...]
    values: list[tuple[tuple[str, ...], Sequence[int], Tensor]] = field(default_factory=list)
    #: tensors, which keep float64, and what derives more values from them once they are on the host
    deferred: list[tuple[list[Tensor], Callable[[list[Tensor]], None]]] = field(default_factory=list)
    #: whether that calls functions of others, which belong into the training thread
    calls_others: bool = False

    def add(self, name: str, indices: Sequence[int], values: Tensor) -> None:
        """Add a metric's values [L, H] or [L] of some layers."""
        self.values.append(((name,), indices, values.unsqueeze(1)))

    def add_broken(self, indices: Sequence[int], flags: Tensor) -> None:
        """Note layers in which something is not finite, [L], not 0 for those."""
        self.add(_BROKEN, indices, flags)

    def add_means(self, sums: Mapping[int, LayerSums]) -> None:
        """Add means over sequences of everything kept by value, and the maxima; NaN where there was none.

        Estimates come with their standard errors: sequences are the strata of one sample of rows.
        """
        for names, indices, parts in _values(sums):
            total, count, *variances = parts.unbind(1)
            self.values.append((names, indices, total / count))
            for variance in variances:
                errors = tuple(map(standard_error, names))
                self.values.append((errors, indices, variance.sqrt() / count))
        for name in dict.fromkeys(name for layer in sums.values() for name in layer.maxima):
            groups: dict[torch.Size, list[int]] = {}
            for index, layer in sums.items():
                if name in layer.maxima:
                    groups.setdefault(layer.maxima[name].shape, []).append(index)
            for indices in groups.values():
                largest = torch.stack([sums[index].maxima[name] for index in indices])
                self.add(name, indices, where_defined(is_finite(largest), largest))

    def means(self, names: Sequence[str]) -> Iterator[tuple[Sequence[int], list[Tensor]]]:
        """Layers that have values of all these metrics, and the values [L, ...] of each."""
        for group, indices, values in self.values:
            if set(names) <= set(group):
                yield indices, [values[:, group.index(name)] for name in names]


def layers_by_shape(layers: Mapping[int, LayerSums], name: str) -> list[list[int]]:
    """Indices of the layers that have a sum of that name, equal ones together."""
    groups: dict[tuple[torch.Size, int], list[int]] = {}
    for index, layer in layers.items():
        if name in layer.sums:
            groups.setdefault((layer.sums[name].shape, layer.heads), []).append(index)
    return list(groups.values())


def in_parts(indices: list[int], size: int, device: torch.device) -> list[list[int]]:
    """Divide layers that have tensors of that many bytes each on a device into parts that memory allows."""
    step = max(1, max(_PART_BYTES, limit_of(device)) // size)
    return [indices[start : start + step] for start in range(0, len(indices), step)]


def _values(sums: Mapping[int, LayerSums]) -> Iterator[tuple[tuple[str, ...], list[int], Tensor]]:
    """Names, layers, and totals, counts and variances [L, 2 or 3, P, ...] of what is kept by value.

    Groups of metrics that equal layers have, in one shape, come together.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, layer in sums.items():
        shapes: dict[tuple[int, ...], list[str]] = {}
        for group in layer.names:
            parts = layer.sums[group]
            shapes.setdefault((len(parts), *parts.shape[2:]), []).append(group)
        for shape, groups in shapes.items():
            alike.setdefault((shape, *groups), []).append(index)
    for (_, *groups), indices in alike.items():
        names = [name for group in groups for name in sums[indices[0]].names[group]]
        stacked = torch.cat([sums[index].sums[group] for index in indices for group in groups], 1)
        parts = stacked.unflatten(1, (len(indices), len(names))).transpose(0, 1)
        places: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            places.setdefault(name, []).append(place)
        if len(places) < len(names):  # calls of one layer had different metrics: add up what they share
            rows = [sum(parts[:, :, place] for place in several) for several in places.values()]
            parts = torch.stack(rows, 2)
        yield tuple(places), indices, parts


class Transfer:
    """The one transfer of all that was derived to the host, which begins when it is made.

    Args:
        stacks: What was derived, by stack; its sums are not needed any more.
    """

    def __init__(self, stacks: Mapping[str, DerivedStack]) -> None:
        self._stacks = stacks.values()
        self._copies = _Copies(
            [x for stack in self._stacks for x in _tensors(stack)],
            [x for stack in self._stacks for tensors, _ in stack.deferred for x in tensors],
        )
        # what was copied is not needed on the device any more
        self._deferred = [[(len(x), derive) for x, derive in stack.deferred] for stack in self._stacks]
        for stack in self._stacks:
            stack.deferred = []

    def finish(self) -> None:
        """Wait for it, replace what was derived by its copies, and derive what was deferred."""
        copies, deferred = self._copies.wait()
        for stack in self._stacks:
            stack.values = [(names, indices, next(copies)) for names, indices, _ in stack.values]
            stack.similarities = [(indices, next(copies)) for indices, _ in stack.similarities]
            stack.overlaps = {
                index: {name: next(copies) for name in overlaps} for index, overlaps in stack.overlaps.items()
            }
        with dividing_among_threads(self._copies.moved):
            for of_stack in self._deferred:
                for count, derive in of_stack:
                    derive([next(deferred) for _ in range(count)])


def _tensors(stack: DerivedStack) -> Iterator[Tensor]:
    """Everything of a stack that the host is to have in float32, in the order of :meth:`Transfer.finish`."""
    yield from (values for *_, values in stack.values)
    yield from (similarity for _, similarity in stack.similarities)
    yield from (overlap for overlaps in stack.overlaps.values() for overlap in overlaps.values())


class _Copies:
    """Tensors on their way to the host by one transfer.

    Args:
        values: Of one device; they arrive as float32.
        deferred: Of the same device; those of float64 arrive as they are.
    """

    def __init__(self, values: Sequence[Tensor], deferred: Sequence[Tensor]) -> None:
        tensors = [*values, *deferred]
        self._count = len(values)
        self._layout: list[tuple[torch.dtype, bool, torch.Size]] = []
        groups: dict[tuple[torch.dtype, bool], list[Tensor]] = {}
        for i, x in enumerate(tensors):
            exact = i >= len(values) and x.dtype == torch.float64
            self._layout.append((x.dtype, exact, x.shape))
            groups.setdefault((x.dtype, exact), []).append(x.flatten())
        # float64 first, as pairs of float32, where its place in the buffer is a multiple of its size
        ordered = sorted(groups.items(), key=lambda group: not group[0][1])
        sizes = [sum(x.numel() for x in parts) * (2 if exact else 1) for (_, exact), parts in ordered]
        self._starts = {kind: sum(sizes[:i]) for i, (kind, _) in enumerate(ordered)}
        self._copy: ToHost | None = None
        if tensors:
            flat = torch.empty(sum(sizes), dtype=torch.float32, device=tensors[0].device)
            with torch.no_grad():
                for piece, ((dtype, exact), parts) in zip(flat.split(sizes), ordered, strict=True):
                    if exact or dtype == torch.float32:
                        torch.cat(parts, out=piece.view(dtype))
                    else:
                        piece.copy_(torch.cat(parts))
            self._copy = ToHost(flat)

    @property
    def moved(self) -> bool:
        """Whether they were on another device."""
        return self._copy is not None and self._copy.moves

    def wait(self) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
        """Wait for them, and return both kinds in their order."""
        if self._copy is None:
            return iter(()), iter(())
        flat, starts, copies = self._copy.wait(), dict(self._starts), []
        for dtype, exact, shape in self._layout:
            begin = starts[dtype, exact]
            end = starts[dtype, exact] = begin + shape.numel() * (2 if exact else 1)
            copy = flat[begin:end]
            copies.append((copy.view(torch.float64) if exact else copy).view(shape))
        return iter(copies[: self._count]), iter(copies[self._count :])


def arrays_of(
    stacks: Mapping[str, DerivedStack], metrics: Iterable[str]
) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, list[int]]]:
    """Make arrays of what was derived and lies on the host.

    Args:
        stacks: What was derived, by stack.
        metrics: Stored names that are reported, in their order.

    Returns:
        Arrays [layer, head] or [layer] by stack and metric, and the layers of each stack in which something
        is not finite.
    """
    order = {name: i for i, name in enumerate(n for m in metrics for n in (m, standard_error(m)))}
    arrays: dict[str, dict[str, NDArray[Any]]] = {stack: {} for stack in stacks}
    broken: dict[str, list[int]] = {stack: [] for stack in stacks}
    for stack, derived in stacks.items():
        heads = derived.heads
        for names, indices, values in derived.values:
            for place, name in enumerate(names):
                numbers = values[:, place].numpy()
                if name == _BROKEN:
                    broken[stack] += [i for i, flag in zip(indices, numbers, strict=True) if flag]
                if name not in order:
                    continue
                shape = (len(heads), max(heads))[: len(spec_of(name).axes)]
                array = arrays[stack].setdefault(name, np.full(shape, np.nan, np.float32))
                for index, value in zip(indices, numbers, strict=True):
                    array[(index, slice(value.size))[: len(shape)]] = value
    ordered = {s: dict(sorted(a.items(), key=lambda i: order[i[0]])) for s, a in arrays.items()}
    return ordered, broken
