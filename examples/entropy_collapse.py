"""Train a small decoder at three learning rates and see entropy collapse before the loss shows it.

Too high a learning rate drives attention heads to look at a single token: their entropy falls to zero and
with it the gradient that could bring them back (Zhai et al. 2023, arXiv 2303.06296). The runs see the same
news in the same order and no story twice, so that the training loss is the loss on text not seen before.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_geo import GeometryMonitor, load_history
from texts import token_ids

EARLY = 20  # the step at which the table compares the runs
VOCABULARY = 4096


class LanguageModel(pl.LightningModule):
    """4 layers of 4 heads, width 128, from scratch, with a constant learning rate."""

    def __init__(self, learning_rate: float, length: int) -> None:
        super().__init__()
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=length,
                tie_word_embeddings=True,
            )
        )
        self.learning_rate = learning_rate
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        [ids] = batch
        loss: Tensor = self.model(input_ids=ids, labels=ids).loss
        self.losses.append(loss.item())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.learning_rate)


@dataclass(frozen=True)
class Run:
    """What the picture and the table need of one run."""

    learning_rate: float
    steps: NDArray[np.int64]  # of the samples
    entropy: NDArray[np.float32]  # of the head with the lowest, per sample
    loss: NDArray[np.float64]  # per step, the mean of the last ten


def run(ids: Tensor, learning_rate: float, args: argparse.Namespace) -> Run:
    """Train at one learning rate and read the run back from its files."""
    pl.seed_everything(args.seed)
    logger = TensorBoardLogger(args.output / "entropy_collapse", name=f"lr_{learning_rate:g}")
    logger.log_hyperparams({"learning_rate": learning_rate, "seed": args.seed})  # for the tab's view Runs
    trainer = pl.Trainer(
        max_epochs=1,
        max_steps=args.max_steps,
        devices=1,
        logger=logger,
        callbacks=[GeometryMonitor(every_n_steps=args.every_n_steps, metrics=["normalized_entropy"])],
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module = LanguageModel(learning_rate, ids.shape[1])
    trainer.fit(module, DataLoader(TensorDataset(ids), batch_size=8, shuffle=True))
    history = load_history(logger.log_dir)
    lowest = np.nanmin(history["normalized_entropy"], axis=(1, 2))
    windows = [module.losses[max(0, step - 9) : step + 1] for step in range(len(module.losses))]
    return Run(learning_rate, history.steps, lowest, np.array([np.mean(window) for window in windows]))


def table(runs: list[Run]) -> str:
    """One row per run: the lowest entropy and the loss early on, and the loss at the end."""
    rows = [f"learning rate | lowest head entropy at step {EARLY} | loss at step {EARLY} | loss at the end"]
    for run in runs:
        sample = min(int(np.searchsorted(run.steps, EARLY)), len(run.steps) - 1)
        early = run.loss[min(EARLY, len(run.loss)) - 1]
        rows.append(f"{run.learning_rate:g} | {run.entropy[sample]:.3f} | {early:.2f} | {run.loss[-1]:.2f}")
    return "\n".join(rows)


def picture(runs: list[Run]) -> Figure:
    """Entropy on the left, loss on the right, one line per learning rate."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for run in runs:
        left.plot(run.steps, run.entropy, linewidth=2, label=f"learning rate {run.learning_rate:g}")
        right.plot(np.arange(1, len(run.loss) + 1), run.loss, linewidth=2)
    left.set(title="Lowest normalized head entropy", xlabel="step", ylim=(0, 1.02))
    right.set(title="Loss, mean of ten steps", xlabel="step")
    for axes in (left, right):
        axes.axvline(EARLY, color="0.6", linestyle=":", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--learning-rates", type=float, nargs="+", default=[1e-3, 1e-2, 3e-2], help="one run each")
    add("--max-steps", type=int, default=200, help="optimizer steps of each run")
    add("--every-n-steps", type=int, default=5, help="optimizer steps between two samples")
    add("--length", type=int, default=128, help="tokens of a text")
    add("--seed", type=int, default=0, help="initial weights and order of the texts")
    add("--output", type=Path, default=Path("runs"), help="directory that the runs and the picture go to")
    args = parser.parse_args()
    ids = token_ids(args.length, VOCABULARY)
    runs = [run(ids, learning_rate, args) for learning_rate in args.learning_rates]
    print(table(runs))
    path = args.output / "entropy_collapse.png"
    picture(runs).savefig(path, dpi=150)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
