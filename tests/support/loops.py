"""The same training in each loop that a monitor may watch: Lightning, transformers, TRL, Fabric, accelerate.

Each of :data:`LOOPS` takes a :class:`Job` and returns a :class:`Trained`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from lightning_fabric import Fabric
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from lightning_geo import GeometryMonitor, watch
from support.lit import trainer
from support.trainer_loops import sft, transformers
from support.training_jobs import Job, Trained, by_step, loader, model, optimizer_of, start

__all__ = ["LOOPS"]


# -- Lightning


class Lit(pl.LightningModule):
    def __init__(self, made: nn.Module) -> None:
        super().__init__()
        self.model = made
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self)


def lightning(job: Job, made: GPT2LMHeadModel | None = None) -> Trained:
    module = Lit(made or model(job))
    monitors = job.monitors_of(GeometryMonitor)
    runner = trainer(job.directory, *monitors, steps=job.steps, accumulate_grad_batches=job.accumulate)
    start(job)
    checkpoint = None if job.resumes is None else job.resumes / "at.ckpt"
    if job.saves_at is not None:

        class Saves(pl.Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                if trainer.global_step == job.saves_at:
                    trainer.save_checkpoint(job.directory / "at.ckpt")

        runner.callbacks.append(Saves())
    runner.fit(module, loader(job), ckpt_path=checkpoint)
    return Trained(module.model, by_step(module.losses, job), monitors)


# -- loops


def loop(
    job: Job, made: nn.Module, called: nn.Module, optimizer: Any, backward: Callable[[Tensor], None]
) -> Trained:
    """A loop of one's own around what Fabric or accelerate made of a model."""

    def make(**given: Any) -> Any:
        return watch(called, logdir=job.directory / given.get("name", "geometry"), **given)

    monitors = job.monitors_of(make)
    if job.uses:  # a loop of one's own has a monitor of its own
        monitors = [make(**given) for given in job.monitors]
    start(job)
    first, losses = 0, []
    with contextlib.ExitStack() as stack:
        for monitor in monitors:
            stack.enter_context(monitor)
        saved: dict[str, Any] = {}
        if job.resumes is not None:
            saved = torch.load(job.resumes / "at.pt", weights_only=True)
            made.load_state_dict(saved["model"])
            first = saved["step"]
            for monitor, state in zip(monitors, saved["monitors"], strict=True):
                monitor.load_state_dict(state)
        batches = iter(loader(job, first * job.accumulate))  # draws
        if saved:
            torch.set_rng_state(saved["torch"])
        for step in range(first, job.steps):
            for _ in range(job.accumulate):
                loss = called(**next(batches)).loss
                losses.append(float(loss.detach()))
                backward(loss / job.accumulate)
            optimizer.step()
            optimizer.zero_grad()
            for monitor in monitors:
                monitor.step()
            if step + 1 == job.saves_at:
                states = [monitor.state_dict() for monitor in monitors]
                kept = {"model": made.state_dict(), "step": step + 1, "monitors": states}
                torch.save({**kept, "torch": torch.get_rng_state()}, job.directory / "at.pt")
    return Trained(made, by_step(losses, job), monitors)


def plain(job: Job, made: GPT2LMHeadModel | None = None) -> Trained:
    made = made or model(job)
    return loop(job, made, made, optimizer_of(made), lambda loss: loss.backward())


def fabric(job: Job, made: GPT2LMHeadModel | None = None) -> Trained:
    made = made or model(job)
    helper = Fabric(accelerator="cpu", devices=1)
    called, optimizer = helper.setup(made, optimizer_of(made))
    return loop(job, made, called, optimizer, helper.backward)


def accelerate(job: Job, made: GPT2LMHeadModel | None = None) -> Trained:
    made = made or model(job)
    helper = Accelerator(cpu=True)
    called, optimizer = helper.prepare(made, optimizer_of(made))
    return loop(job, made, called, optimizer, helper.backward)


LOOPS: dict[str, Callable[..., Trained]] = {
    "lightning": lightning, "transformers": transformers, "sft": sft, "plain": plain, "fabric": fabric,
    "accelerate": accelerate,
}  # fmt: skip
