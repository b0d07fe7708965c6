"""A training job in the Trainers of transformers and TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from lightning_geo import GeometryCallback
from support.training_jobs import (
    BATCH,
    LENGTH,
    VOCABULARY,
    Job,
    Trained,
    collate,
    model,
    optimizer_of,
    sequences,
    start,
)

__all__ = ["sft", "transformers"]


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
