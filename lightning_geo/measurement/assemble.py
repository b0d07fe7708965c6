"""From the statistics of a sample to arrays [layer, head]: all is derived, then moved to the host at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_geo.functional import head_similarity, principal_subspace
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.measurement.sums import LayerStatistics
from lightning_geo.metrics.gates import GATES
from lightning_geo.metrics.registry import metric_function
from lightning_geo.metrics.selection import spec_of, standard_error
from lightning_geo.metrics.spec import ROLES
from lightning_geo.observe import CallKey, LayerNumbering

__all__ = ["Bases", "Computed", "compute"]

#: Sequences of a layer with scores that are not finite.
_BROKEN = "broken"

#: ``stack -> role -> [layer, head, feature, component]``, NaN where a layer has none.
Bases = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Computed:
    """Metrics by stack and stored name, the bases behind them, and what the model looks like."""

    stacks: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    bases: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    similarities: dict[str, Tensor] = field(default_factory=dict)
    #: stack -> metric -> [layer, head, head], what the heads of a layer have in common by their weights
    overlaps: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    structure: dict[str, Any] = field(default_factory=dict)
    #: modules with activations that are not finite -> their layer, as ``stack/layer``
    broken: dict[str, str] = field(default_factory=dict)

    def matrices(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Bases and head-pair similarities by stack, for the samples that keep them."""
        result: dict[str, dict[str, NDArray[Any]]] = {}
        for stack, roles in self.bases.items():
            result[stack] = {f"basis.{role}": basis.cpu().numpy() for role, basis in roles.items()}
        for stack, similarity in self.similarities.items():
            result.setdefault(stack, {})["head_similarity"] = similarity.cpu().numpy()
        for stack, overlaps in self.overlaps.items():
            pairs = {f"pairs.{name}": overlap.cpu().numpy() for name, overlap in overlaps.items()}
            result.setdefault(stack, {}).update(pairs)
        return result


def compute(
    sample: SampleStatistics,
    numbering: LayerNumbering,
    metrics: tuple[str, ...],
    rank: int,
    chosen: Callable[[CallKey], bool],
    baseline: Bases | None = None,
    previous: Bases | None = None,
) -> Computed:
    """Derive all metrics of one model.

    Args:
        sample: Its statistics, merged over ranks.
        numbering: Where its calls go.
        metrics: Stored names to compute.
        rank: Dimensions of the subspaces that are compared; at most half a head.
        chosen: Which calls to report.
        baseline: Bases that ``drift`` is against; without, this sample's own, and drift is 0.
        previous: Bases that ``velocity`` is against; without, it is absent.
    """
    result = Computed()
    pieces: list[tuple[str, str, int, Tensor]] = []
    for stack, size in numbering.sizes.items():
        layers: dict[int, LayerStatistics] = {}
        # of a layer without attention, the path of the list item; its heads are 0
        modules = list(numbering.rows[stack])
        for key, (owner, index) in numbering.layers.items():
            if owner != stack or key not in sample.layers or not chosen(key):
                continue
            layers[index], modules[index] = sample.layers[key], key.module or modules[index]
            block = sample.blocks.get((numbering.blocks[key], key), LayerStatistics())
            values = layers[index].mean_values()
            for name, value in {**values, **block.mean_values()}.items():
                pieces.append((stack, name, index, value))
            pieces.extend((stack, name, index, count) for name, count in _counts(values, metrics))
            pieces.extend((stack, _BROKEN, index, flag) for flag in _broken(layers[index]))
        if not layers:
            continue
        heads = [layers[i].heads if i in layers else 0 for i in range(size)]
        result.structure[stack] = {"modules": modules, "heads": heads}
        joint = {i: c for i, layer in layers.items() if (c := _joint_covariance(layer)) is not None}
        bases = _spectral(stack, layers, joint, metrics, rank, pieces)
        result.bases[stack] = {role: _stack_bases(b, size, max(heads)) for role, b in bases.items()}
        _compare_bases(stack, result.bases[stack], metrics, baseline, previous, pieces)
        _heads(stack, joint, metrics, max(heads), result, pieces)
        found = {
            index: sample.overlaps[key] for key, (owner, index) in numbering.layers.items()
            if owner == stack and index in layers and key in sample.overlaps
        }  # fmt: skip
        _keep_overlaps(stack, found, heads, result)
    _to_host(pieces, metrics, result)
    return result


def _counts(values: dict[str, Tensor], metrics: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """How many heads are which gate."""
    margins = [values[f"gate.{gate}"] for gate in GATES if f"gate.{gate}" in values]
    if len(margins) < len(GATES):
        return []
    counted = [name for name in metrics if spec_of(name).kind == "counts"]
    return [(name, metric_function(name)(torch.stack(margins), name.rpartition(".")[2])) for name in counted]


def _broken(layer: LayerStatistics) -> list[Tensor]:
    """Whether anything in it was not finite, one flag per kind of statistics."""
    flags = [~total.isfinite().all() for name, total in layer.sums.items() if name.endswith(".sum")]
    return [*flags, layer.sums[_BROKEN] > 0] if _BROKEN in layer.sums else flags


def _spectral(
    stack: str, layers: dict[int, LayerStatistics], joint: dict[int, Tensor], metrics: tuple[str, ...],
    rank: int, pieces: list[tuple[str, str, int, Tensor]],
) -> dict[str, dict[int, Tensor]]:  # fmt: skip
    """Eigenvalue metrics, and the top subspaces ``role -> layer -> [H, D, r]``; one eigh per head size."""
    found: dict[int, list[tuple[str, int, Tensor]]] = {}
    for index, layer in layers.items():
        for role in ROLES:
            covariance = layer.covariance(role)
            if covariance is None and role == "output" and index in joint:
                # each head's own is a block of that of all heads together
                covariance = joint[index].diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            if covariance is not None:
                found.setdefault(covariance.shape[-1], []).append((role, index, covariance))
    if not found:
        return {}
    rank = max(1, min(rank, min(found) // 2))
    bases: dict[str, dict[int, Tensor]] = {}
    for entries in found.values():
        values, vectors = principal_subspace(torch.cat([c for _, _, c in entries]).float(), rank)
        counts = [c.shape[0] for _, _, c in entries]
        metric_values = {
            m: metric_function(m)(values).split(counts) for m in metrics if spec_of(m).kind == "moments"
        }
        for i, ((role, index, _), basis) in enumerate(zip(entries, vectors.split(counts), strict=True)):
            repeat = layers[index].heads // counts[i]  # grouped queries share a key's numbers
            for name, split in metric_values.items():
                if name.endswith(f".{role}"):
                    pieces.append((stack, name, index, split[i].repeat_interleave(repeat)))
            bases.setdefault(role, {})[index] = basis.repeat_interleave(repeat, dim=0)
    return bases


def _joint_covariance(layer: LayerStatistics) -> Tensor | None:
    """Of the outputs of all heads: ``[H, D, H, D]``; None if nobody asked for it."""
    covariance = layer.covariance("heads")
    if covariance is None:
        return None
    head = covariance.shape[-1] // layer.heads
    return covariance[0].float().view(layer.heads, head, layer.heads, head)


def _stack_bases(bases: dict[int, Tensor], size: int, heads: int) -> Tensor:
    example = next(iter(bases.values()))
    features = max(basis.shape[1] for basis in bases.values())
    result = example.new_full((size, heads, features, example.shape[-1]), torch.nan)
    for index, basis in bases.items():
        result[index, : basis.shape[0]] = 0.0  # smaller heads live in the first features
        result[index, : basis.shape[0], : basis.shape[1]] = basis
    return result


def _compare_bases(
    stack: str, bases: dict[str, Tensor], metrics: tuple[str, ...],
    baseline: Bases | None, previous: Bases | None, pieces: list[tuple[str, str, int, Tensor]],
) -> None:  # fmt: skip
    """qk_alignment, and how far each role's subspace is from the baseline and the sample before."""
    for name in metrics:
        spec = spec_of(name)
        if spec.kind != "bases":
            continue
        if spec.name == "qk_alignment":
            pair = bases.get("query"), bases.get("key")
        else:
            role = name.rpartition(".")[2]
            other = {"drift": bases if baseline is None else baseline.get(stack, {}),
                     "velocity": {} if previous is None else previous.get(stack, {})}[spec.name]  # fmt: skip
            pair = bases.get(role), other.get(role)
        first, second = pair
        if first is None or second is None or first.shape != second.shape:
            continue
        values = metric_function(name)(first, second.to(first.device))
        if second is first:  # against itself: rounding is no drift, but NaN stays
            values = values * 0.0
        elif spec.name != "qk_alignment":
            # a layer that lost heads has numbered them anew: no head is to be compared with another
            same = _last_head(first) == _last_head(second.to(first.device))
            values = values.masked_fill(~same[:, None], torch.nan)
        pieces.extend((stack, name, index, row) for index, row in enumerate(values))


def _last_head(bases: Tensor) -> Tensor:
    """[layer], one more than the number of each layer's last head that has a basis."""
    there = ~bases.isnan().flatten(2).all(-1)
    return (there * torch.arange(1, there.shape[1] + 1, device=there.device)).amax(1)


def _heads(
    stack: str, joint: dict[int, Tensor], metrics: tuple[str, ...], heads: int,
    result: Computed, pieces: list[tuple[str, str, int, Tensor]],
) -> None:  # fmt: skip
    """What compares the heads of a layer."""
    names = [name for name in metrics if spec_of(name).kind == "heads"]
    for index, covariance in joint.items():
        pieces.extend((stack, name, index, metric_function(name)(covariance)) for name in names)
        if stack not in result.similarities:
            size = len(result.structure[stack]["heads"])
            result.similarities[stack] = covariance.new_full((size, heads, heads), torch.nan)
        own = covariance.shape[0]
        result.similarities[stack][index, :own, :own] = head_similarity(covariance)


def _keep_overlaps(
    stack: str, found: dict[int, dict[str, Tensor]], heads: list[int], result: Computed
) -> None:
    for index, overlaps in found.items():
        for name, overlap in overlaps.items():
            shared = heads[index] // overlap.shape[0]  # grouped queries share a key's numbers
            overlap = overlap.repeat_interleave(shared, dim=0).repeat_interleave(shared, dim=1)
            kept = result.overlaps.setdefault(stack, {})
            if name not in kept:
                kept[name] = overlap.new_full((len(heads), max(heads), max(heads)), torch.nan)
            kept[name][index, : heads[index], : heads[index]] = overlap


def _to_host(pieces: list[tuple[str, str, int, Tensor]], metrics: tuple[str, ...], result: Computed) -> None:
    """One transfer for all numbers, then arrays with NaN where nothing was measured."""
    if not pieces:
        return
    structure = result.structure
    flat = torch.cat([value.reshape(-1).float() for *_, value in pieces]).cpu().numpy()
    order = {name: i for i, name in enumerate(n for m in metrics for n in (m, standard_error(m)))}
    stacks: dict[str, dict[str, NDArray[Any]]] = {stack: {} for stack in structure}
    start = 0
    for stack, name, index, value in pieces:
        numbers = flat[start : start + value.numel()]
        start += value.numel()
        if name == _BROKEN and numbers.any():
            result.broken[structure[stack]["modules"][index]] = f"{stack}/{index}"
        if name not in order:
            continue
        heads = structure[stack]["heads"]
        shape = (len(heads), max(heads))[: len(spec_of(name).axes)]
        array = stacks[stack].setdefault(name, np.full(shape, np.nan, np.float32))
        if len(shape) == 1:
            array[index] = numbers[0]
        else:
            array[index, : numbers.size] = numbers
    for arrays in stacks.values():
        for name in [n for n in arrays if spec_of(n).kind == "slopes" and not np.nan_to_num(arrays[n]).any()]:
            del arrays[name]  # there was no loss, or one that no head changes
    result.stacks = {s: dict(sorted(a.items(), key=lambda i: order[i[0]])) for s, a in stacks.items()}
