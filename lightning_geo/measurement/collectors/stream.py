"""The information stream: hidden states before, in and after a layer, by token and by sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_geo.functional import stream_statistics
from lightning_geo.functional.stream import mean_over_tokens
from lightning_geo.kernels import STREAM
from lightning_geo.kernels.workspace import kept_of
from lightning_geo.measurement.batches import BatchEntry, LayerBatches, limit_of
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.sums import LayerSums, add_values, joined
from lightning_geo.measurement.waiting_results import WaitingResults
from lightning_geo.metrics.registry import reads_of
from lightning_geo.metrics.spec import STAGES
from lightning_geo.observe import BlockCall

__all__ = ["Stream"]


class _Stage(NamedTuple):
    """The metrics of one stage."""

    name: str
    by_token: tuple[str, ...]
    cones: tuple[str, ...]

    @property
    def functions(self) -> tuple[str, ...]:
        """The metrics of the cone, whatever the stage."""
        return tuple(name.removesuffix(f".{self.name}") for name in self.cones)


class _Cone(NamedTuple):
    """The sums that the cone of one layer at one stage is computed from."""

    layer: LayerSums
    stage: _Stage
    #: [B, d]
    directions: Tensor
    #: [B], real tokens, and those that are no zero vectors
    tokens: Tensor
    directed: Tensor

    @property
    def layout(self) -> tuple[object, ...]:
        """A key that is equal for cones that are computed together, whatever the stage."""
        return self.stage.functions, self.directions.shape, self.directions.device

    @property
    def nbytes(self) -> int:
        """Bytes of the waiting tensors, without the counts."""
        return self.directions.nbytes


class _Read(NamedTuple):
    """A kernel's results for L layers at stages of one kind, with B sequences each."""

    owners: list[tuple[LayerSums, _Stage]]
    valid: Tensor
    finite: Tensor
    #: metrics by token, and their planes [P, L·B, N]
    names: tuple[str, ...]
    planes: Tensor | None
    #: [L·B, d] and [L·B]
    directions: Tensor | None
    directed: Tensor | None

    @property
    def layout(self) -> tuple[object, ...]:
        """A key that is equal for planes that are averaged together."""
        stage, sequences = self.owners[0][1], self.valid.shape[0] // len(self.owners)
        width = None if self.directions is None else self.directions.shape[-1]
        return stage.functions, self.names, sequences, self.valid.shape[1], width, self.valid.device

    @property
    def nbytes(self) -> int:
        """Bytes of the waiting tensors, without the flags, which layers may share."""
        return sum(x.nbytes for x in (self.planes, self.directions) if x is not None)


#: Bytes of directions that wait for those of other layers.
_WAITING_BYTES = 1 << 24


class Stream(Collector):
    """Length, distribution, change and cone of hidden states; by token at a layer's output alone.

    Args:
        metrics: Stored names of the metrics to measure.
        calls: How many calls are expected.
    """

    offers = frozenset({*STREAM, "tokens", "directed"})

    def __init__(self, metrics: tuple[str, ...], calls: int | None = None) -> None:
        super().__init__(metrics)
        by_token = tuple(name for name in metrics if "directions" not in reads_of(name))
        cones = [name for name in metrics if "directions" in reads_of(name)]
        self._stages = {
            stage: _Stage(
                stage,
                by_token if stage == "output" else (),
                tuple(name for name in cones if name.endswith(f".{stage}")),
            )
            for stage in STAGES
        }
        self._batches = LayerBatches(self._add, calls=calls)
        self._reads = WaitingResults(self._add_averages)
        self._cones = WaitingResults(self._add_cones)

    def attention_output(self, layer: LayerSums, output: Tensor, mask: Tensor | None) -> None:
        self._batches.add(*self._observed(layer, "attention", output, mask))

    def block(self, layer: LayerSums, block: BlockCall) -> None:
        observed: list[BatchEntry] = []
        if block.input is not None:
            observed += self._observed(layer, "input", block.input, block.mask)
        if block.output is not None:
            observed += self._observed(layer, "output", block.output, block.mask, block.input)
        self._batches.add(*observed)

    def _observed(
        self, layer: LayerSums, name: str, x: Tensor, mask: Tensor | None, before: Tensor | None = None
    ) -> list[BatchEntry]:
        stage = self._stages[name]
        if not (stage.by_token or stage.cones):
            return []
        tensors = {"x": x}
        if before is not None and any("update_ratio" in reads_of(metric) for metric in stage.by_token):
            tensors["before"] = before
        tag = stage.by_token, stage.functions
        alike = sum((other.by_token, other.functions) == tag for other in self._stages.values())
        return [BatchEntry((layer, stage), tensors, {"mask": mask}, tag, alike)]

    def _add(
        self,
        owners: list[tuple[LayerSums, _Stage]],
        tensors: dict[str, Tensor],
        shared: dict[str, Tensor | None],
    ) -> None:
        stage = owners[0][1]
        mask, count = shared["mask"], len(owners)
        if mask is not None:
            mask = kept_of(_repeated, (mask,), count)
        requested = {field for name in (*stage.by_token, *stage.cones) for field in reads_of(name)}
        before = tensors["before"].flatten(0, 1) if "before" in tensors else None
        statistics = stream_statistics(
            tensors["x"].flatten(0, 1), mask, before, statistics=requested & set(STREAM)
        )
        planes = {
            field: plane for name in stage.by_token for field in reads_of(name)
            if (plane := getattr(statistics, field)) is not None
        }  # fmt: skip
        names = tuple(name for name in stage.by_token if set(reads_of(name)) <= set(planes))
        stacked = None
        if names:
            shape = statistics.valid.shape
            stacked = torch.stack([self.value(name, planes, shape) for name in names])
        directions, directed = (statistics.directions, statistics.directed) if stage.cones else (None, None)
        read = _Read(owners, statistics.valid, statistics.finite, names, stacked, directions, directed)
        self._reads.add(read, limit=limit_of(read.valid.device))

    def _add_averages(self, reads: list[_Read]) -> None:
        """Average over tokens the planes of layers with equal layouts."""
        owners = [owner for read in reads for owner in read.owners]
        layers, count, names = [layer for layer, _ in owners], len(owners), reads[0].names
        valid = joined([read.valid for read in reads])
        if owners[0][1].cones:
            directions = joined([read.directions for read in reads if read.directions is not None])
            directed = joined([read.directed for read in reads if read.directed is not None])
            directions, tokens, directed = (
                x.unflatten(0, (count, -1)) for x in (directions, valid.sum(-1), directed)
            )
            stages = (stage for _, stage in owners)
            self._cones.add(*map(_Cone, layers, stages, directions, tokens, directed), limit=_WAITING_BYTES)
        if names:
            planes = joined([read.planes for read in reads if read.planes is not None], 1)
            means = mean_over_tokens(planes, valid, joined([read.finite for read in reads]))
            add_values(layers, "tokens", names, _by_layer(means, count))

    def _add_cones(self, cones: list[_Cone]) -> None:
        """Compute the cones of layers and stages with equal layouts."""
        quantities = {
            name: torch.stack([getattr(cone, name) for cone in cones])
            for name in ("directions", "tokens", "directed")
        }
        shape = quantities["tokens"].shape
        values = [self.value(name, quantities, shape) for name in cones[0].stage.cones]
        for cone, own in zip(cones, torch.stack(values, 1), strict=True):
            add_values([cone.layer], cone.stage.name, cone.stage.cones, own[None])

    def settle(self) -> None:
        self._batches.flush()
        self._reads.finish()
        self._cones.finish()


def _repeated(masks: tuple[Tensor], count: int) -> Tensor:
    (mask,) = masks
    return mask.expand(count, *mask.shape).flatten(0, 1)


def _by_layer(values: Tensor, count: int) -> Tensor:
    """[P, L·B] as [L, P, B]."""
    by_layer: Tensor = values.unflatten(1, (count, -1)).transpose(0, 1)
    return by_layer
