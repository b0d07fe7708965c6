"""A small fit that runs the same in one process and in several, and what came of it on this rank."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_geo import GeometryMonitor, GeometryRecord
from support.lit import FIRST_TOKEN, Lit, bert, sequences, trainer

#: Sequences of a batch, over all ranks.
BATCH = 8


def model() -> nn.Module:
    """A BERT of spread weights: of near-equal vectors the directions would be a matter of rounding."""
    return bert(heads=8, dropout=0.0, initializer_range=0.3, cls_token_id=FIRST_TOKEN)


class Module(Lit):
    """A classifier whose steps do not amplify rounding, as Adam's do where a gradient is nothing else."""

    def __init__(self, build: Callable[[], nn.Module] = model) -> None:
        super().__init__(build)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TwoTowers(Module):
    """The second model gets a single sequence per rank."""

    def __init__(self) -> None:
        super().__init__()
        self.second = model()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        few = {name: x[: len(x) // 4] for name, x in batch.items()}
        return super().loss(batch) + self.second(**few).loss  # type: ignore[no-any-return]


class Dropping(nn.Module):
    """Attention layers of which each rank leaves out another one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        layers = (nn.TransformerEncoderLayer(16, 2, 16, 0.0, batch_first=True) for _ in range(3))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(16, 2)
        self.dropped: int | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x = self.embed(input_ids)
        for index, layer in enumerate(self.layers):
            if index != self.dropped:
                x = layer(x, src_key_padding_mask=~attention_mask.bool())
        self.loss = nn.functional.cross_entropy(self.head(x.mean(1)), labels)
        return self


class Watcher(pl.Callback):
    """Keeps every new record of a monitor, and calls ``before(step)`` ahead of each step."""

    def __init__(self, monitor: GeometryMonitor, before: Callable[[int], object] = lambda step: None) -> None:
        self.monitor = monitor
        self.before = before
        self.records: list[GeometryRecord] = []

    def _keep(self) -> None:
        record = self.monitor.last_record
        if record is not None and (not self.records or self.records[-1] is not record):
            self.records.append(record)

    def on_train_batch_start(self, *_: Any) -> None:
        self._keep()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._keep()
        self.before(trainer.global_step)

    def on_fit_end(self, *_: Any) -> None:
        self._keep()  # the last sample is taken after every `on_train_end`


class CrashError(Exception):
    """Ends a fit on purpose."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def trimmed(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Padding up to the longest of the batch, so that it differs from rank to rank."""
    longest = max(int(item["attention_mask"].sum()) for item in batch)
    return {
        name: torch.stack([item[name][:longest] if item[name].dim() else item[name] for item in batch])
        for name in batch[0]
    }


def batches(count: int, seed: int) -> DataLoader[Any]:
    """This rank's part of the same batches, whatever the number of ranks."""
    data = sequences(count, length=24, seed=seed)
    sampler = DistributedSampler(data, world_size(), rank(), shuffle=False)  # type: ignore[arg-type]
    return DataLoader(data, BATCH // world_size(), sampler=sampler, collate_fn=trimmed)  # type: ignore[arg-type]


def fit(
    directory: Path,
    monitor: GeometryMonitor,
    module: pl.LightningModule,
    *,
    validate: bool = False,
    before: Callable[[int], object] = lambda step: None,
    steps: int = 6,
    ckpt_path: Path | None = None,
    save: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One fit; what came of it on this rank."""
    watcher = Watcher(monitor, before)
    if dist.is_initialized():
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
        options = {"strategy": strategy, "devices": world_size(), "use_distributed_sampler": False, **options}
    runner = trainer(directory / f"rank_{rank()}", monitor, watcher, steps=steps, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(CrashError):
            runner.fit(module, batches(64, 0), batches(32, 1) if validate else None, ckpt_path=ckpt_path)
    if save is not None:
        runner.save_checkpoint(save)
    return {
        "records": watcher.records,
        "steps": runner.global_step,
        "loss": [float(loss) for loss in getattr(module, "losses", ())],
        "callback_metrics": {name: float(value) for name, value in runner.callback_metrics.items()},
        "warnings": [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)],
        "files": sorted(path.name for path in Path(runner.default_root_dir).rglob("*tfevents*")),
    }
