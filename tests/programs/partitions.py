"""Small fits whose parameters DeepSpeed partitions; a program for each process, as :mod:`programs.ranks`.

``python -m programs.partitions <directory> <scenario>...``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor
from lightning_geo.observe.replay import gathered_units
from programs import rank_fits, ranks
from programs.rank_fits import Module, fit, rank, world_size
from programs.sharded_loops import looped, optimizer_of, trained
from programs.sharded_ranks import FAILURES, METRICS, failing_on_one, weights_of
from support.lit import sequences, trainer
from support.storages import alive

_Prepared = tuple[nn.Module, Any, Callable[[Tensor], object]]


def config(stage: int, **options: Any) -> dict[str, Any]:
    """Settings of DeepSpeed, which clips gradients unless it is told not to."""
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, **options},
    }


#: Nothing stays gathered, and nothing is gathered ahead.
PARTED = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 1,
    "stage3_prefetch_bucket_size": 0,
}


def engine(model: nn.Module, settings: dict[str, Any]) -> _Prepared:
    if world_size() == 1:
        return model, optimizer_of(model), Tensor.backward
    import deepspeed

    called, *_ = deepspeed.initialize(model=model, optimizer=optimizer_of(model), config=settings)
    updates = SimpleNamespace(step=called.step, zero_grad=lambda: None)
    return called, updates, called.backward


zero_1 = partial(engine, settings=config(1))
zero_2 = partial(engine, settings=config(2))
zero_3 = partial(engine, settings=config(3))
parted = partial(engine, settings=config(3, **PARTED))


def in_bfloat16(model: nn.Module) -> _Prepared:
    """Compute with weights in bfloat16, of which the optimizer has others in float32."""
    if world_size() == 1:
        return model.bfloat16(), optimizer_of(model), Tensor.backward
    return engine(model, {**config(3, **PARTED), "bf16": {"enabled": True}})


def accelerate(model: nn.Module, stage: int) -> _Prepared:
    plugin = DeepSpeedPlugin(hf_ds_config=config(stage)) if world_size() > 1 else None
    accelerator = Accelerator(cpu=plugin is None, deepspeed_plugin=plugin)
    called, optimizer = accelerator.prepare(model, optimizer_of(model))
    return called, optimizer, accelerator.backward


class OnCPU(DeepSpeedStrategy):
    """Lightning refuses DeepSpeed on a CPU."""

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()


def options(stage: int) -> dict[str, Any]:
    if world_size() == 1:
        return {}
    return {"strategy": OnCPU(config=config(stage), process_group_backend="gloo")}


def lightning(directory: Path, stage: int = 3, monitored: bool = True) -> dict[str, Any]:
    module = Module()
    if monitored:
        monitor = GeometryMonitor(2, metrics=METRICS)
        result = fit(directory, monitor, module, validate=True, **options(stage))
        return result | {"weights": weights_of(module)}
    parallel = {"devices": world_size(), "use_distributed_sampler": False}
    runner = trainer(directory / f"rank_{rank()}", steps=6, **parallel, **options(stage))
    runner.fit(module, rank_fits.batches(64, 0), rank_fits.batches(32, 1))
    return {"loss": [float(loss) for loss in module.losses], "weights": weights_of(module)}


def injected(directory: Path, failure: tuple[Any, ...]) -> dict[str, Any]:
    """A loop of one's own in which rank 1 alone fails."""
    with failing_on_one(*failure) as proceed:
        return looped(directory, parted, before=proceed)


def costs(directory: Path) -> dict[str, Any]:
    """How many full parameters a replay holds, and how many there are."""
    held, sizes = 0, dict[str, int]()
    gathered: list[tuple[StorageWeakRef, int]] = []
    gather = gathered_units.gather_parts

    def gathering(output: Tensor, *args: Any) -> Any:
        nonlocal held
        gathered.append((StorageWeakRef(output.untyped_storage()), output.numel()))
        held = max(held, alive(gathered, held))
        return gather(output, *args)

    def prepare(model: nn.Module) -> _Prepared:
        layers = model.bert.encoder.layer  # type: ignore[union-attr]
        sizes["layer"] = sum(p.numel() for p in layers[0].parameters())  # type: ignore[index]
        sizes["all"] = sum(p.numel() for p in model.parameters())
        return parted(model)

    with patch.object(gathered_units, "gather_parts", gathering):
        return looped(directory, prepare) | {"held": held, "sizes": sizes}


WEIGHED = ["entropy", "importance", "weights", "updates"]
SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "zero_1": lambda d: looped(d, zero_1),
    "zero_2": lambda d: looped(d, zero_2),
    "zero_3": lambda d: looped(d, zero_3),
    "parted": lambda d: looped(d, parted),
    "given": lambda d: looped(d, zero_3, probe=DataLoader(sequences(32, seed=3), 4)),  # type: ignore[arg-type]
    "one_sequence": lambda d: looped(d, zero_3, probe_size=1),
    "in_bfloat16": lambda d: looped(d, in_bfloat16),
    "accelerate_2": lambda d: looped(d, partial(accelerate, stage=2)),
    "accelerate_3": lambda d: looped(d, partial(accelerate, stage=3)),
    "transformers_1": lambda d: trained(d, deepspeed=config(1), ddp_backend="gloo"),
    "transformers_3": lambda d: trained(d, deepspeed=config(3), ddp_backend="gloo"),
    "lightning_2": lambda d: lightning(d, 2),
    "lightning_3": lightning,
    "lightning_3_alone": lambda d: lightning(d, monitored=False),
    "weighed": lambda d: looped(d, zero_3, metrics=WEIGHED),
    "batch_3": lambda d: looped(d, parted, source="batch", metrics=["entropy", "weights"]),
    "weighed_2": lambda d: looped(d, zero_2, metrics=WEIGHED),
    "zero_1_alone": lambda d: looped(d, zero_1, monitored=False),
    "zero_2_alone": lambda d: looped(d, zero_2, monitored=False),
    "zero_3_alone": lambda d: looped(d, zero_3, monitored=False),
    "parted_alone": lambda d: looped(d, parted, monitored=False),
    "in_bfloat16_alone": lambda d: looped(d, in_bfloat16, monitored=False),
    "costs": costs,
    **{name: partial(injected, failure=failure) for name, failure in FAILURES.items()},
}


def main() -> None:
    """A process with the environment of its rank."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    ranks.main(SCENARIOS)


run = partial(ranks.run, scenarios=SCENARIOS)

if __name__ == "__main__":
    main()
