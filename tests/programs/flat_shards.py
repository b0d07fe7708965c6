"""Small fits whose parameters FSDP1 splits; a program for each process, as :mod:`programs.ranks`.

``python -m programs.flat_shards <directory> <scenario>...``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from lightning_fabric import Fabric
from lightning_fabric.strategies import FSDPStrategy as FabricStrategy
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel, MixedPrecision, ShardingStrategy
from torch.distributed.fsdp._flat_param import FlatParamHandle
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader
from transformers.models.bert.modeling_bert import BertLayer

from lightning_geo import GeometryMonitor, watch
from lightning_geo.measurement.sample import Measurement
from lightning_geo.observe.replay import gathered_units
from programs import rank_fits, ranks
from programs.rank_fits import Module, fit, rank, world_size
from programs.sharded_loops import (
    BY_LAYER,
    by_fsdp,
    looped,
    optimizer_of,
    trained,
)
from programs.sharded_ranks import FAILURES, METRICS, failing_on_one, weights_of
from support.lit import sequences, trainer
from support.storages import alive

#: A policy of FSDP that makes a unit of each layer.
LAYERS = partial(transformer_auto_wrap_policy, transformer_layer_cls={BertLayer})

_Prepared = tuple[nn.Module, torch.optim.Optimizer, Callable[[Tensor], object]]


def flat(model: nn.Module, **options: Any) -> _Prepared:
    called = model
    if world_size() > 1:
        called = FullyShardedDataParallel(model, **options)
    return called, optimizer_of(called), Tensor.backward


by_layer = partial(flat, auto_wrap_policy=LAYERS)


def mixed(model: nn.Module) -> _Prepared:
    """Compute in bfloat16 with weights in float32."""
    if world_size() == 1:
        return model.bfloat16(), optimizer_of(model), Tensor.backward
    return by_layer(model, mixed_precision=MixedPrecision(torch.bfloat16, torch.float32))


class FabricOnCPU(FabricStrategy):
    """Fabric refuses the class itself on a CPU."""


def fabric(model: nn.Module) -> _Prepared:
    parallel: dict[str, Any] = {}
    if world_size() > 1:
        parallel["strategy"] = FabricOnCPU(auto_wrap_policy=LAYERS, process_group_backend="gloo")
    runner = Fabric(accelerator="cpu", devices=world_size(), **parallel)
    runner.launch()
    called = runner.setup_module(model)
    return called, runner.setup_optimizers(optimizer_of(called)), runner.backward


def accelerate(model: nn.Module) -> _Prepared:
    plugin = None
    if world_size() > 1:
        own: dict[str, Any] = {"cpu_ram_efficient_loading": False, "sync_module_states": False, **BY_LAYER}
        plugin = FullyShardedDataParallelPlugin(fsdp_version=1, use_orig_params=True, **own)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    called, optimizer = accelerator.prepare(model, optimizer_of(model))
    return called, optimizer, accelerator.backward


class OnCPU(FSDPStrategy):
    """Lightning refuses the class itself on a CPU."""


def options(**more: Any) -> dict[str, Any]:
    if world_size() == 1:
        return {}
    return {"strategy": OnCPU(process_group_backend="gloo", auto_wrap_policy=LAYERS, **more)}


class Plain(Module):
    """The optimizer is made of what FSDP left of the parameters."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        model = self.trainer.model if world_size() > 1 else self
        return torch.optim.SGD(model.parameters(), lr=0.01)  # type: ignore[union-attr]


def lightning(directory: Path, **arguments: Any) -> dict[str, Any]:
    """A fit whose LightningModule is inside of the outermost unit."""
    monitor = GeometryMonitor(2, **{"metrics": METRICS, **arguments})
    module = Plain()
    result = fit(directory, monitor, module, validate=True, **options())
    return result | {"weights": weights_of(module)}


def lightning_unmonitored(directory: Path) -> dict[str, Any]:
    module = Plain()
    parallel = {"devices": world_size(), "use_distributed_sampler": False} if world_size() > 1 else {}
    runner = trainer(directory / f"rank_{rank()}", steps=6, **parallel, **options())
    runner.fit(module, rank_fits.batches(64, 0), rank_fits.batches(32, 1))
    return {"loss": [float(loss) for loss in module.losses], "weights": weights_of(module)}


def lightning_fails(directory: Path) -> dict[str, Any]:
    """The same fit, in which the model fails on rank 1 alone."""
    monitor, module = GeometryMonitor(2, metrics=METRICS), Plain()
    with failing_on_one(*FAILURES["fails_in_model"]) as proceed:
        result = fit(directory, monitor, module, validate=True, before=proceed, **options())
    return result | {"weights": weights_of(module)}


def injected(directory: Path, failure: tuple[Any, ...]) -> dict[str, Any]:
    """A loop of one's own in which rank 1 alone fails."""
    with failing_on_one(*failure) as proceed:
        return looped(directory, by_layer, before=proceed)


def offloaded(directory: Path) -> dict[str, Any]:
    """What is said of parameters that wait on the CPU; to train them takes an accelerator."""
    model, *_ = by_layer(rank_fits.model(), cpu_offload=CPUOffload(offload_params=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(model, logdir=directory / f"rank_{rank()}"):
            pass
    return {"warnings": [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]}


def costs(directory: Path) -> dict[str, Any]:
    """How many full parameters training holds, and how many a replay."""
    held = {"training": 0, "replay": 0}
    gathered: list[tuple[StorageWeakRef, int]] = []
    handles: dict[int, FlatParamHandle] = {}
    gather, allocate = gathered_units.gather_parts, FlatParamHandle._alloc_padded_unsharded_flat_param

    def gathering(output: Tensor, *args: Any) -> Any:
        gathered.append((StorageWeakRef(output.untyped_storage()), output.numel()))
        held["replay"] = max(held["replay"], alive(gathered, held["replay"]))
        return gather(output, *args)

    def allocating(self: FlatParamHandle) -> Tensor:
        handles[id(self)] = self
        result = allocate(self)
        sizes = [len(h.flat_param._full_param_padded.untyped_storage()) // 4 for h in handles.values()]
        held["training"] = max(held["training"], sum(sizes))
        return result

    with (
        patch.object(gathered_units, "gather_parts", gathering),
        patch.object(FlatParamHandle, "_alloc_padded_unsharded_flat_param", allocating),
    ):
        result = looped(directory, by_layer)
    sizes = [h.flat_param._full_param_padded.numel() for h in handles.values()]
    return result | {"held": held, "sizes": sizes}


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "one_unit": lambda d: looped(d, flat),
    "one_unit_of_originals": lambda d: looped(d, partial(flat, use_orig_params=True)),
    "layers": lambda d: looped(d, by_layer),
    "layers_of_originals": lambda d: looped(d, partial(by_layer, use_orig_params=True)),
    "kept": lambda d: looped(d, partial(by_layer, sharding_strategy=ShardingStrategy.SHARD_GRAD_OP)),
    "whole": lambda d: looped(d, partial(by_layer, sharding_strategy=ShardingStrategy.NO_SHARD)),
    "given": lambda d: looped(d, by_layer, probe=DataLoader(sequences(32, seed=3), 4)),  # type: ignore[arg-type]
    "one_sequence": lambda d: looped(d, by_layer, probe_size=1),
    "accelerate": lambda d: looped(d, accelerate),
    "fabric": lambda d: looped(d, fabric),
    "transformers": lambda d: trained(d, **by_fsdp(1)),
    "lightning": lightning,
    "lightning_unmonitored": lightning_unmonitored,
    "mixed": lambda d: looped(d, mixed),
    "weighed": lambda d: looped(d, by_layer, metrics=["entropy", "importance", "weights", "updates"]),
    "batch": lambda d: looped(d, by_layer, source="batch"),
    "costs": costs,
    "unmonitored": lambda d: looped(d, by_layer, monitored=False),
    "unmonitored_originals": lambda d: looped(d, partial(by_layer, use_orig_params=True), monitored=False),
    "unmonitored_mixed": lambda d: looped(d, mixed, monitored=False),
    "offloaded": offloaded,
    "lightning_fails": lightning_fails,
    "fails_in_first_observe": partial(injected, failure=(Measurement, "observe", 0)),
    **{name: partial(injected, failure=failure) for name, failure in FAILURES.items()},
}


def main() -> None:
    """A process with the environment of its rank."""
    original = FullyShardedDataParallel.__init__

    def on_cpu(self: FullyShardedDataParallel, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "device_id": torch.device("cpu")})

    with patch.object(FullyShardedDataParallel, "__init__", on_cpu):  # strategies do not ask for it
        ranks.main(SCENARIOS)


run = partial(ranks.run, scenarios=SCENARIOS)

if __name__ == "__main__":
    main()
