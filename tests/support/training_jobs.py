"""What each loop trains, and how: a job, its model and its data."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

__all__ = [
    "BATCH",
    "LENGTH",
    "VOCABULARY",
    "Job",
    "Trained",
    "by_step",
    "collate",
    "loader",
    "model",
    "optimizer_of",
    "sequences",
    "start",
    "with_head_of_sft",
]

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


def by_step(losses: list[float], job: Job) -> list[float]:
    """The mean loss of the batches of each step."""
    return np.reshape(losses, (-1, job.accumulate)).mean(1).tolist()  # type: ignore[no-any-return]
