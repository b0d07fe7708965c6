"""Loops of other trainers whose parameters are split over processes; see :mod:`programs.sharding`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from lightning_geo import GeometryCallback, GeometryRecord, watch
from programs import rank_fits
from programs.rank_fits import rank, world_size
from programs.sharded_ranks import FAILURES, METRICS, failing_on_one, split, weights_of
from support.lit import sequences

STEPS = 6
#: How accelerate shards a BERT by layer.
BY_LAYER = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["BertLayer"]}

_Prepared = tuple[nn.Module, torch.optim.Optimizer, Callable[[Tensor], object]]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01)


def plain(model: nn.Module) -> _Prepared:
    if world_size() > 1:
        split(model, init_device_mesh("cpu", (world_size(),)))
    return model, optimizer_of(model), Tensor.backward


def by_data(model: nn.Module, mesh: Any) -> nn.Module:
    split(model, mesh["data_parallel"])
    return model


def fabric(model: nn.Module) -> _Prepared:
    parallel: dict[str, Any] = {}
    if world_size() > 1:
        sizes = {"data_parallel_size": world_size(), "tensor_parallel_size": 1}
        parallel["strategy"] = ModelParallelStrategy(by_data, **sizes, process_group_backend="gloo")  # type: ignore[arg-type]
    runner = Fabric(accelerator="cpu", devices=world_size(), **parallel)
    runner.launch()
    called = runner.setup_module(model)
    return called, runner.setup_optimizers(optimizer_of(called)), runner.backward


def accelerate(model: nn.Module) -> _Prepared:
    plugin = None
    if world_size() > 1:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False, **BY_LAYER)  # type: ignore[arg-type]
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    called, optimizer = accelerator.prepare(model, optimizer_of(model))
    return called, optimizer, accelerator.backward


def mixed(model: nn.Module) -> _Prepared:
    """Compute in bfloat16 with weights in float32."""
    if world_size() == 1:
        return model.bfloat16(), optimizer_of(model), Tensor.backward
    split(model, init_device_mesh("cpu", (world_size(),)), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    return model, optimizer_of(model), Tensor.backward


@contextlib.contextmanager
def sharding_without_accelerators() -> Iterator[None]:
    """Let accelerate shard on CPUs, where it takes the plugin and does nothing with it."""
    original = AcceleratorState.__init__

    def prepare(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    with patch.object(AcceleratorState, "__init__", prepare):
        yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


def looped(
    directory: Path,
    prepare: Callable[[nn.Module], _Prepared],
    before: Callable[[int], object] = lambda step: None,
    monitored: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """A loop of one's own; what came of it on this rank."""
    with sharding_without_accelerators(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, optimizer, backward = prepare(rank_fits.model().train())
        arguments: Any = {"every_n_steps": 2, "metrics": METRICS, **options}
        geometry = watch(model, logdir=directory / f"rank_{rank()}", **arguments)
        records: dict[int, GeometryRecord] = {}
        losses = []
        with geometry if monitored else contextlib.nullcontext():
            for step, batch in zip(range(STEPS), rank_fits.batches(64, 0), strict=False):
                before(step)
                loss = model(**batch).loss
                backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss))
                if monitored:
                    geometry.step()
                    keep(records, geometry.last_record)
            before(STEPS)
        if monitored:
            keep(records, geometry.last_record)
    return {
        "records": list(records.values()),
        "loss": losses,
        "weights": weights_of(model),
        "warnings": [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)],
    }


def injected_into_loop(directory: Path, failure: tuple[Any, ...]) -> dict[str, Any]:
    """A loop of one's own in which rank 1 alone fails."""
    with failing_on_one(*failure) as proceed:
        return looped(directory, plain, before=proceed)


def keep(records: dict[int, GeometryRecord], record: GeometryRecord | None) -> None:
    if record is not None:
        records[record.step] = record


def by_fsdp(version: int) -> dict[str, Any]:
    """Arguments of a Trainer that shards by layer."""
    config = {
        "version": version,
        "cpu_ram_efficient_loading": False,
        "sync_module_states": False,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["BertLayer"],
    }
    return {"fsdp": True, "fsdp_config": config, "ddp_backend": "gloo"}


def trained(directory: Path, **sharding: Any) -> dict[str, Any]:
    """``transformers.Trainer``, which shards as accelerate does."""
    records: dict[int, GeometryRecord] = {}

    class Keeping(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            keep(records, geometry.last_record)

        on_train_end = on_step_end

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: object) -> Sampler[int]:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    parallel = {"use_cpu": True, **(sharding if world_size() > 1 else {})}
    model = rank_fits.model()
    rows = sequences(32, length=24, seed=3)
    geometry = GeometryCallback(
        every_n_steps=2, metrics=METRICS,
        probe={name: torch.stack([row[name] for row in rows[:8]]) for name in rows[0]},
    )  # fmt: skip
    with sharding_without_accelerators(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arguments = TrainingArguments(
            str(directory), max_steps=STEPS, per_device_train_batch_size=8 // world_size(),
            report_to="none", disable_tqdm=True, save_strategy="no", max_grad_norm=0, learning_rate=0.01,
            lr_scheduler_type="constant", optim="sgd",
            average_tokens_across_devices=False, **parallel,
        )  # fmt: skip
        InOrder(
            model, arguments, train_dataset=sequences(64, length=24), callbacks=[geometry, Keeping()],  # type: ignore[arg-type]
        ).train()  # fmt: skip
    said = [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]
    return {"records": list(records.values()), "warnings": said}


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "plain": lambda d: looped(d, plain),
    "plain_unmonitored": lambda d: looped(d, plain, monitored=False),
    "fabric": lambda d: looped(d, fabric),
    "accelerate": lambda d: looped(d, accelerate),
    "transformers": lambda d: trained(d, **by_fsdp(2)),
    "mixed": lambda d: looped(d, mixed),
    "mixed_unmonitored": lambda d: looped(d, mixed, monitored=False),
    **{f"loop_{name}": partial(injected_into_loop, failure=f) for name, f in FAILURES.items()},
}
