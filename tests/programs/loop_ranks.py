"""One of two processes that train together, in a loop of their own or under ``transformers.Trainer``.

``python -m programs.loop_ranks DIRECTORY NAME``, with RANK, WORLD_SIZE and the like in the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from lightning_fabric import Fabric
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from lightning_geo import GeometryCallback, watch
from lightning_geo.utils.ranks import rank, world_size
from support.lit import bert, sequences

SETTINGS = {"every_n_steps": 2, "metrics": ["entropy", "subspace", "cone"], "probe_size": 8}
STEPS, BATCH = 3, 8


def model() -> torch.nn.Module:
    """A BERT of spread weights: of near-equal vectors the directions would be a matter of rounding."""
    torch.manual_seed(0)
    return bert(dropout=0.0, initializer_range=0.3).train()


def loop(directory: Path, name: str) -> None:
    made = model()
    optimizer = torch.optim.SGD(made.parameters(), 0.01)
    if name == "fabric":
        fabric = Fabric(accelerator="cpu", devices=1) if world_size() == 1 else launched()
        called, optimizer = fabric.setup(made, optimizer)
        backward = fabric.backward
    elif name == "accelerate":
        accelerator = Accelerator(cpu=True)
        called, optimizer = accelerator.prepare(made, optimizer)
        backward = accelerator.backward
    else:
        called = DistributedDataParallel(made) if world_size() > 1 else made
        backward = torch.Tensor.backward
    rows = sequences()[rank() :: world_size()]
    batches = DataLoader(rows, BATCH // world_size())  # type: ignore[arg-type]
    with watch(called, logdir=directory, strict=True, **SETTINGS) as geometry:  # type: ignore[arg-type]
        for _, batch in zip(range(STEPS), batches, strict=False):
            backward(called(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
            geometry.step()
        assert set(geometry.metrics) >= {"geometry/entropy"}


def probe() -> dict[str, torch.Tensor]:
    """The first sequences as one batch."""
    rows = sequences()[:BATCH]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def launched() -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    return fabric


def trainer(directory: Path) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))  # the process group is made by the arguments
    arguments = TrainingArguments(
        str(directory), max_steps=STEPS, per_device_train_batch_size=BATCH // world, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", max_grad_norm=0, learning_rate=0.01,
        lr_scheduler_type="constant", ddp_backend="gloo" if world > 1 else None,
        # else the Trainer multiplies the loss by the number of processes, as if the model had divided it by
        # the labels of all of them, which a classifier does not
        average_tokens_across_devices=False,
    )  # fmt: skip
    made = model()

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    optimizer = torch.optim.SGD(made.parameters(), 0.01)
    InOrder(
        made, arguments, train_dataset=sequences(), optimizers=(optimizer, None),  # type: ignore[arg-type]
        # the ranks of a Trainer share batches out in their own way
        callbacks=[GeometryCallback(strict=True, probe=probe(), **SETTINGS)],  # type: ignore[arg-type]
    ).train()  # fmt: skip


def run(directory: Path, name: str) -> None:
    if name == "transformers":
        trainer(directory)
    else:
        loop(directory, name)


if __name__ == "__main__":
    if sys.argv[2] == "plain":
        dist.init_process_group("gloo")
    run(Path(sys.argv[1]), sys.argv[2])
    if dist.is_initialized():
        dist.destroy_process_group()
