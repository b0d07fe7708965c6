"""Small fits of which each process computes a part of attention; see :mod:`programs.sharding`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._context_parallel import _attention
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor
from programs import ranks
from programs.ranks import Module, fit, world_size
from programs.sharded_ranks import METRICS, split
from support.lit import sequences


class TensorParallel(Module):
    """Each process has some of the heads of each layer."""

    def configure_model(self) -> None:
        if world_size() == 1:
            return
        plan = dict.fromkeys(("query", "key", "value"), ColwiseParallel())
        for layer in self.model.bert.encoder.layer:  # type: ignore[union-attr]
            attention = layer.attention
            own = {f"self.{name}": style for name, style in plan.items()}
            parallelize_module(
                attention, self.device_mesh["tensor_parallel"], {**own, "output.dense": RowwiseParallel()}
            )


class BothParallel(TensorParallel):
    """The same, sharded by ``fully_shard`` as well."""

    def configure_model(self) -> None:
        super().configure_model()
        if world_size() > 1:
            split(self.model, self.device_mesh["data_parallel"])


def in_parallel(
    directory: Path, build: Callable[[], Module] = TensorParallel, **arguments: Any
) -> dict[str, Any]:
    """A fit whose heads are split over processes, which all have the same sequences."""
    parallel: dict[str, Any] = {}
    if world_size() > 1:
        sizes = {"data_parallel_size": 1, "tensor_parallel_size": world_size()}
        parallel["strategy"] = ModelParallelStrategy(**sizes, process_group_backend="gloo")  # type: ignore[arg-type]
    monitor = GeometryMonitor(2, metrics=METRICS, **arguments)
    with patch.object(ranks, "batches", lambda count, seed: DataLoader(sequences(count, seed=seed), 8)):  # type: ignore[arg-type]
        return fit(directory, monitor, build(), validate=True, **parallel)


def contextual(directory: Path, **arguments: Any) -> dict[str, Any]:
    """Each process has half of each sequence, and attends to the keys of both."""

    class Contextual(Module):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            with context_parallel(self.mesh, buffers=[torch.zeros(8)], buffer_seq_dims=[0]):
                return super().training_step(batch, batch_idx)

    module = Contextual()
    module.mesh = init_device_mesh("cpu", (world_size(),))
    with patch.object(_attention, "_distribute_function", unchanged):
        return fit(directory, GeometryMonitor(2, metrics=METRICS, **arguments), module)


def unchanged(function: Any, owner: Any, *_: Any) -> None:
    """Replace a function by one that does the same: ring attention needs an accelerator."""
    wrapper = lambda *args, **kwargs: function(*args, **kwargs)  # noqa: E731
    _attention._replaced_functions[wrapper] = (function.__name__, function)
    setattr(owner, function.__name__, wrapper)


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "tensor_parallel": in_parallel,
    "tensor_parallel_batch": lambda d: in_parallel(d, source="batch"),
    "both_parallel": lambda d: in_parallel(d, BothParallel),
    "contextual": contextual,
    "contextual_batch": lambda d: contextual(d, source="batch"),
}
