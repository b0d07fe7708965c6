"""From the sums of a sample to arrays [layer, head]: all is derived, then moved to the host at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_geo.measurement.derived_stack import Bases, DerivedStack, Transfer, arrays_of
from lightning_geo.measurement.row_sampling import is_mean_over_rows
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.foreign import FOREIGN
from lightning_geo.metrics.registry import reads_of
from lightning_geo.metrics.selection import is_standard_error
from lightning_geo.observe import CallKey, LayerNumbering
from lightning_geo.storage.patterns import AttentionPatterns, as_bytes

__all__ = ["Bases", "Computed", "Derivation", "SampleDerivation", "derive"]


@dataclass
class Computed:
    """Metrics by stack and stored name, the bases behind them, and what the model looks like."""

    stacks: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    bases: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    similarities: dict[str, Tensor] = field(default_factory=dict)
    #: stack -> metric -> [layer, head, head], what the heads of a layer have in common by their weights
    overlaps: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    structure: dict[str, Any] = field(default_factory=dict)
    #: by stack, on the rank that measures them
    patterns: dict[str, AttentionPatterns] = field(default_factory=dict)
    #: modules with activations that are not finite -> their layer, as ``stack/layer``
    broken: dict[str, str] = field(default_factory=dict)
    #: foreign metrics that failed on this rank -> the first error of each
    failures: dict[str, Exception] = field(default_factory=dict)

    def add(self, other: Computed) -> None:
        """Add the results of another model; its stacks have other names."""
        self.stacks.update(other.stacks)
        self.bases.update(other.bases)
        self.similarities.update(other.similarities)
        self.overlaps.update(other.overlaps)
        self.structure.update(other.structure)
        self.patterns.update(other.patterns)
        self.broken.update(other.broken)
        self.failures = {**other.failures, **self.failures}

    def drop_by_draw(self) -> None:
        """Leave out errors where no rank drew rows, and where it did in all layers, what a draw lacks."""
        for arrays in self.stacks.values():
            for name, values in list(arrays.items()):
                exact = is_standard_error(name) and not np.nan_to_num(values).any()
                if exact or (np.isnan(values).all() and not is_mean_over_rows(name)):
                    del arrays[name]

    def drop_absent(self) -> None:
        """Leave out importance without a loss, and foreign metrics that failed, in whatever model or rank."""
        for arrays in self.stacks.values():
            for name, values in list(arrays.items()):
                base = name.partition(".")[0]
                # there was no loss, or one that no head changes
                weightless = "head_gradient" in reads_of(name) and not np.nan_to_num(values).any()
                if weightless or base in self.failures or (base in FOREIGN and np.isnan(values).all()):
                    del arrays[name]

    def matrices(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Bases and head-pair similarities by stack, for the samples that keep them."""
        result: dict[str, dict[str, NDArray[Any]]] = {}
        for stack, roles in self.bases.items():
            result[stack] = {f"basis.{role}": basis.numpy() for role, basis in roles.items()}
        for stack, similarity in self.similarities.items():
            # copied: a record that kept this part would keep the buffer of the whole transfer
            result.setdefault(stack, {})["head_similarity"] = similarity.numpy().copy()
        for stack, overlaps in self.overlaps.items():
            pairs = {f"pairs.{name}": overlap.numpy() for name, overlap in overlaps.items()}
            result.setdefault(stack, {}).update(pairs)
        return result


class Derivation:
    """All metrics of one model, derived on its device and on their way to the host.

    Args:
        sample: The sums that they were derived from.
        stacks: What was derived, by stack.
        structure: What the model looks like, see :class:`Computed`.
        metrics: Stored names that are reported.
    """

    def __init__(
        self,
        sample: SampleStatistics,
        stacks: dict[str, DerivedStack],
        structure: dict[str, Any],
        metrics: tuple[str, ...],
    ) -> None:
        self.sample = sample
        self._stacks, self._structure, self._metrics = stacks, structure, metrics
        self._transfer = Transfer(stacks)
        #: whether :meth:`finish` calls functions of others, which belong into the training thread
        self.calls_others = any(stack.calls_others for stack in stacks.values())

    def finish(self) -> Computed:
        """Wait for the transfer, decompose matrices, and make arrays of it all; once.

        Where nothing is called of others, any thread may do so.
        """
        self._transfer.finish()
        result = Computed(structure=self._structure)
        result.stacks, broken = arrays_of(self._stacks, self._metrics)
        for name, stack in self._stacks.items():
            result.bases[name] = stack.bases
            _keep_pairs(name, stack, result)
            if (patterns := _patterns(stack)) is not None:
                result.patterns[name] = patterns
        for name, layers in broken.items():
            modules = result.structure[name]["modules"]
            result.broken.update({modules[index]: f"{name}/{index}" for index in layers})
        result.failures = self.sample.failures
        if self.sample.draws_if_long:
            result.drop_by_draw()
        result.drop_absent()
        return result


class SampleDerivation:
    """All metrics of a sample, on their way to the host.

    Args:
        parts: Those of each model, with the prefix of its modules' names.
    """

    def __init__(self, parts: Sequence[tuple[str, Derivation]]) -> None:
        self._parts = parts
        #: whether :meth:`finish` calls functions of others, which belong into the training thread
        self.calls_others = any(part.calls_others for _, part in parts)

    def release(self) -> None:
        """Free the sums, which are needed no more."""
        for _, part in self._parts:
            part.sample.release()

    def finish(self) -> Computed:
        """Return the metrics when they are there; see :meth:`Derivation.finish`."""
        merged = Computed()
        for prefix, derivation in self._parts:
            part = derivation.finish()
            if prefix:  # two towers have modules of the same names
                part.broken = {f"{prefix}.{module}": place for module, place in part.broken.items()}
            merged.add(part)
        merged.drop_absent()
        return merged


def derive(
    sample: SampleStatistics,
    numbering: LayerNumbering,
    metrics: tuple[str, ...],
    rank: int,
    reports: Callable[[CallKey], bool],
    baseline: Bases | None = None,
    previous: Bases | None = None,
) -> Derivation:
    """Derive all metrics of one model; nothing of it waits for the device.

    Args:
        sample: Its sums, merged over ranks.
        numbering: Where its calls go.
        metrics: Stored names to compute.
        rank: Dimensions of the subspaces that are compared; at most half a head.
        reports: Whether to report a call.
        baseline: Bases that ``drift`` is against; without, this sample's own, and drift is 0.
        previous: Bases that ``velocity`` is against; without, it is absent.
    """
    sample.settle()
    structure: dict[str, Any] = {}
    stacks: dict[str, DerivedStack] = {}
    for name, size in numbering.sizes.items():
        calls = {
            index: key
            for key, (owner, index) in sorted(numbering.layers.items(), key=lambda item: item[1])
            if owner == name and key in sample.layers and reports(key)
        }
        if not calls:
            continue
        stack = DerivedStack(
            layers={index: sample.layers[key] for index, key in calls.items()},
            keys=calls,
            heads=[sample.layers[calls[i]].heads if i in calls else 0 for i in range(size)],
            rank=rank,
            baseline=None if baseline is None else baseline.get(name, {}),
            previous=None if previous is None else previous.get(name, {}),
            blocks={index: (numbering.blocks[key], key) for index, key in calls.items()},
        )
        blocks = {index: sample.blocks.get(block) for index, block in stack.blocks.items()}
        stack.add_means(stack.layers)
        stack.add_means({i: block for i, block in blocks.items() if block is not None})
        for collector in sample.collectors:
            collector.derive(stack)
        for other in sample.foreign:
            other.derive(stack)
        stacks[name] = stack
        # of a layer without attention, the path of the list item; its heads are 0
        modules = list(numbering.rows[name])
        for index, key in calls.items():
            modules[index] = key.module or modules[index]
        structure[name] = {"modules": modules, "heads": stack.heads}
    return Derivation(sample, stacks, structure, metrics)


def _keep_pairs(name: str, stack: DerivedStack, result: Computed) -> None:
    """Put the matrices of pairs of heads into arrays over all layers."""
    size, heads = len(stack.heads), max(stack.heads)
    if len(stack.similarities) == 1 and stack.similarities[0][1].shape[:2] == (size, heads):
        result.similarities[name] = stack.similarities.pop()[1]
    for indices, similarity in stack.similarities:
        if name not in result.similarities:
            result.similarities[name] = similarity.new_full((size, heads, heads), torch.nan)
        own = similarity.shape[1]
        for index, matrix in zip(indices, similarity, strict=True):
            result.similarities[name][index, :own, :own] = matrix
    for index, overlaps in stack.overlaps.items():
        own = stack.heads[index]
        for metric, overlap in overlaps.items():
            shared = own // overlap.shape[0]  # grouped queries share a key's numbers
            overlap = overlap.repeat_interleave(shared, dim=0).repeat_interleave(shared, dim=1)
            kept = result.overlaps.setdefault(name, {})
            if metric not in kept:
                kept[metric] = overlap.new_full((size, heads, heads), torch.nan)
            kept[metric][index, :own, :own] = overlap


def _patterns(stack: DerivedStack) -> AttentionPatterns | None:
    """Put the pooled attention of a stack's layers into one array; None where no layer has any."""
    layers, heads = len(stack.heads), max(stack.heads)
    sides = [own[0].shape[-1] for own in stack.patterns.values()]
    values = np.full((layers, heads, *[max(sides, default=0)] * 2), np.nan, np.float32)
    lengths = np.zeros(layers, np.int64)
    tokens: tuple[str, ...] = ()
    for index, (attention, count, *ids) in sorted(stack.patterns.items()):
        own, side = attention.numpy(), attention.shape[-1]
        if np.isnan(own).all():  # its masks were withdrawn, or nothing in it is finite
            continue
        values[index, : len(own), :side, :side] = own
        lengths[index] = int(count)
        if not tokens and ids:
            tokens = tuple(f"#{int(number)}" for number in ids[0] if number >= 0)
    if not lengths.any():
        return None
    side = min(int(lengths.max()), values.shape[-1])
    fit = len(tokens) in lengths
    return AttentionPatterns(as_bytes(values[..., :side, :side]), lengths, tokens if fit else ())
