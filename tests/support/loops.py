"""The same training in each loop that a monitor may watch: Lightning, transformers, TRL, Fabric, accelerate.

Import as ``from support.loops import LOOPS, Job``. Each takes a :class:`Job` and returns a :class:`Trained`.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from datasets import Dataset
from lightning_fabric import Fabric
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from lightning_geo import GeometryCallback, GeometryMonitor, watch
from support.lit import trainer

__all__ = ["LOOPS", "Job", "Trained", "model", "with_head_of_sft"]

VOCABULARY, LENGTH, BATCH = 60, 10, 4


@dataclass
class Job:
    """What is trained, and how.

    Args:
        directory: Of the run; the record lies somewhere below.
        monitors: Arguments of each monitor; none for training without.
        steps: Optimizer steps in all.
        accumulate: Batches of a step.
        saves_at: Step at whose end a checkpoint is saved; ``None`` for none.
        resumes: Directory of the earlier session's job, to go on from its checkpoint.
        fails_at: Training forward pass, counted from 0, that raises.
        error: What it raises.
        uses: Monitors of an earlier job that are used again.
        seed: Of weights and data.
        made: The monitors, once they are made.
    """

    directory: Path
    monitors: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 4
    accumulate: int = 1
    saves_at: int | None = None
    resumes: Path | None = None
    fails_at: int | None = None
    error: BaseException | None = None
    uses: list[Any] | None = None
    seed: int = 0
    made: list[Any] = field(default_factory=list)

    def monitors_of(self, make: Callable[..., Any]) -> list[Any]:
        """The job's monitors, made where it uses none of an earlier job."""
        self.made = self.uses or [make(**given) for given in self.monitors]
        return self.made


@dataclass
class Trained:
    """What a job has left."""

    model: nn.Module
    losses: list[float]
    monitors: list[Any]

    def outcome(self) -> dict[str, Any]:
        """All that training made: weights, buffers, losses, generators, mode flags."""
        result: dict[str, Any] = {f"state/{k}": v for k, v in self.model.state_dict().items()}
        result |= {f"training/{name}": m.training for name, m in self.model.named_modules()}
        result |= {"losses": self.losses, "torch": torch.get_rng_state()}
        return result | {"python": random.getstate(), "numpy": repr(np.random.get_state())}


class Failing(nn.Embedding):
    """The embedding of a model: raises in one of its training forward passes."""

    calls = 0
    fails_at: int | None = None
    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.calls += 1
            if self.calls - 1 == self.fails_at and self.error is not None:
                raise self.error
        return super().forward(x)


def model(job: Job) -> GPT2LMHeadModel:
    """A random GPT-2 with dropout."""
    torch.manual_seed(job.seed)
    made = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, use_cache=False,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    embedding = Failing(VOCABULARY, 32)
    embedding.load_state_dict(made.transformer.wte.state_dict())
    embedding.fails_at, embedding.error = job.fails_at, job.error
    made.transformer.wte = embedding
    made.tie_weights()
    return made.train()


def with_head_of_sft(made: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The model with the loss that SFTTrainer computes: newer TRL's from fused log-probabilities of its own.

    That loss has another order of summation, so that weights trained by it differ in their last bits.
    """
    try:
        from trl.trainer import add_fused_lm_head
    except ImportError:  # older TRL takes the model's loss
        return made
    add_fused_lm_head(made, outputs=("log_probs", "entropy", "is_top1"))
    made.forward = functools.partial(made.forward, fused_lm_head=True)  # type: ignore[method-assign]
    return made


def sequences(job: Job) -> list[dict[str, list[int]]]:
    """Sequences of one length, so that every collator makes the same batches of them.

    Their first tokens are no labels: transformers would count them among those that it divides the loss by.
    """
    generator = torch.Generator().manual_seed(job.seed)
    ids = torch.randint(3, VOCABULARY, (64, LENGTH), generator=generator).tolist()
    return [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """The batch that TRL makes of such rows, in its order."""
    ids, labels = (torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels"))
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def loader(job: Job, skip: int = 0) -> DataLoader[Any]:
    return DataLoader(sequences(job)[skip * BATCH :], BATCH, collate_fn=collate)  # type: ignore[arg-type]


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """Without a state, and small steps: rounding errors of one loop's loss stay what they are."""
    return torch.optim.SGD(module.parameters(), lr=0.05)


def start(job: Job) -> None:
    """Set the generators as training begins."""
    pl.seed_everything(job.seed + 1, verbose=False)


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


def by_step(losses: list[float], job: Job) -> list[float]:
    """The mean loss of the batches of each step."""
    return np.reshape(losses, (-1, job.accumulate)).mean(1).tolist()  # type: ignore[no-any-return]


# -- transformers


def arguments(job: Job, kind: Any = TrainingArguments, **options: Any) -> Any:
    saving = {"save_strategy": "no"} if job.saves_at is None else {"save_steps": job.saves_at}
    return kind(
        output_dir=str(job.directory), max_steps=job.steps, per_device_train_batch_size=BATCH, use_cpu=True,
        gradient_accumulation_steps=job.accumulate, report_to="none", disable_tqdm=True, max_grad_norm=0,
        lr_scheduler_type="constant", learning_rate=0.05, seed=job.seed, logging_steps=1,
        bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False, **saving, **options,
    )  # fmt: skip


class InOrder(Trainer):
    """Takes sequences in their order, and keeps what each batch adds to the loss, rounded in logs."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        vars(self).setdefault("parts", []).append(float(loss))
        return loss


class SFTInOrder(InOrder, SFTTrainer):
    """The same for TRL's."""


def train(job: Job, runner: InOrder, monitors: list[Any]) -> Trained:
    start(job)
    at = None if job.resumes is None else str(job.resumes / f"checkpoint-{newest(job.resumes)}")
    if at is not None:
        runner.args.resume_from_checkpoint = at
    runner.train(resume_from_checkpoint=at)
    losses = np.reshape(vars(runner)["parts"], (-1, job.accumulate)).sum(1).tolist()
    return Trained(runner.model, losses, monitors)


def newest(directory: Path) -> int:
    return min(int(path.name.partition("-")[2]) for path in directory.glob("checkpoint-*"))


def transformers(job: Job, made: GPT2LMHeadModel | None = None) -> Trained:
    made, monitors = made or model(job), job.monitors_of(GeometryCallback)
    runner = InOrder(
        made, arguments(job), collate, sequences(job), callbacks=monitors,  # type: ignore[arg-type]
        optimizers=(optimizer_of(made), None),
    )  # fmt: skip
    return train(job, runner, monitors)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "w0")), pad_token="w0", bos_token="w1", eos_token="w2"
    )


def sft(job: Job, made: GPT2LMHeadModel | None = None) -> Trained:
    made, monitors = made or model(job), job.monitors_of(GeometryCallback)
    runner = SFTInOrder(
        made, arguments(job, SFTConfig, max_length=LENGTH), train_dataset=Dataset.from_list(sequences(job)),
        processing_class=tokenizer(), callbacks=monitors, optimizers=(optimizer_of(made), None),
    )  # fmt: skip
    return train(job, runner, monitors)


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
