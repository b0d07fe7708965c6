"""Small fits of which each process computes a part of attention; see :mod:`programs.sharding`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._context_parallel import _attention
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler
from transformers import LlamaConfig, LlamaForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lightning_geo import GeometryMonitor
from lightning_geo.measurement.sample_statistics import SampleStatistics
from programs import rank_fits
from programs.rank_fits import BATCH, Module, fit, rank, trimmed, world_size
from programs.sharded_ranks import METRICS, failing_on_one, split
from support.lit import VOCABULARY, sequences


def llama(**config: Any) -> nn.Module:
    """A Llama whose 8 query heads share 4 key heads."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, intermediate_size=64, num_labels=2,
            initializer_range=0.3, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            **(heads | config),
        )
    )  # fmt: skip


class TensorParallel(Module):
    """Each process has some of the heads of each layer of a BERT."""

    def configure_model(self) -> None:
        if world_size() == 1:
            return
        mesh = self.device_mesh["tensor_parallel"]
        self.parallelize(mesh)
        if self.device_mesh["data_parallel"].size() > 1:
            self.split(self.device_mesh["data_parallel"])

    def parallelize(self, mesh: Any) -> None:
        plan = dict.fromkeys(("self.query", "self.key", "self.value"), ColwiseParallel())
        for layer in self.model.bert.encoder.layer:  # type: ignore[union-attr]
            parallelize_module(layer.attention, mesh, {**plan, "output.dense": RowwiseParallel()})

    def split(self, mesh: Any) -> None:
        split(self.model, mesh)


class LlamaParallel(TensorParallel):
    """The same of a Llama, its feed-forward layers too."""

    def parallelize(self, mesh: Any) -> None:
        columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
        rows = ("self_attn.o_proj", "mlp.down_proj")
        plan = dict.fromkeys(columns, ColwiseParallel()) | dict.fromkeys(rows, RowwiseParallel())
        for layer in self.model.model.layers:  # type: ignore[union-attr]
            parallelize_module(layer, mesh, plan)

    def split(self, mesh: Any) -> None:
        for layer in self.model.model.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


def in_parallel(
    directory: Path,
    build: Callable[[], Module] = TensorParallel,
    validate: bool = True,
    before: Callable[[int], object] = lambda step: None,
    **arguments: Any,
) -> dict[str, Any]:
    """A fit whose heads are split over pairs of processes, which have the same sequences."""
    parallel: dict[str, Any] = {}
    replicas = max(1, world_size() // 2)
    if world_size() > 1:
        sizes = {"data_parallel_size": replicas, "tensor_parallel_size": 2}
        parallel["strategy"] = ModelParallelStrategy(**sizes, process_group_backend="gloo")  # type: ignore[arg-type]

    def batches(count: int, seed: int) -> DataLoader[Any]:
        data: Any = sequences(count, length=24, seed=seed)
        sampler = DistributedSampler(data, replicas, rank() // 2, shuffle=False)
        return DataLoader(data, BATCH // replicas, sampler=sampler, collate_fn=trimmed)

    monitor = GeometryMonitor(2, **{"metrics": METRICS, **arguments})
    with patch.object(rank_fits, "batches", batches):
        return fit(directory, monitor, build(), validate=validate, before=before, **parallel)


def injected(directory: Path, failure: tuple[Any, ...]) -> dict[str, Any]:
    """A fit in which rank 1 alone fails, in the midst of what it computes with others."""
    with failing_on_one(*failure) as proceed:
        return in_parallel(directory, partial(LlamaParallel, llama), validate=False, before=proceed)


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


#: More features than a layer may have for the joint covariance of its heads.
WIDE = partial(llama, head_dim=160)

SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "heads": in_parallel,
    "grouped": lambda d: in_parallel(d, partial(LlamaParallel, llama)),
    "grouped_batch": lambda d: in_parallel(
        d, partial(LlamaParallel, llama), source="batch", metrics=[*METRICS, "importance", "gates"]
    ),
    "wide": lambda d: in_parallel(d, partial(LlamaParallel, WIDE)),
    "drawn": lambda d: in_parallel(d, partial(LlamaParallel, llama), max_queries=4, metrics=["entropy"]),
    "weighed_heads": lambda d: in_parallel(d, metrics=["entropy", "importance", "weights", "updates"]),
    "heads_unhindered": partial(injected, failure=(LlamaRMSNorm, "forward", -1)),
    "heads_in_hook": partial(injected, failure=(SampleStatistics, "attention")),
    "heads_in_model": partial(injected, failure=(LlamaRMSNorm, "forward")),
    "heads_in_first_model": partial(injected, failure=(LlamaRMSNorm, "forward", 0)),
    "contextual": contextual,
    "contextual_batch": lambda d: contextual(d, source="batch"),
}
