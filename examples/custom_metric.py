"""Define a metric of your own, train a small decoder for a few seconds, and find the metric everywhere.

The metric is the Gini coefficient of the attention that keys receive: 0 where all receive the same, near
1 where a few tokens receive nearly all. The run carries its description, so that whoever reads the run needs
neither this file nor the metric's package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from entropy_collapse import VOCABULARY, LanguageModel
from lightning_geo import GeometryMonitor, MetricSpec, load_history, register_metric
from texts import token_ids


@register_metric(
    MetricSpec(
        name="key_gini",
        family="inequality",
        axes=("layer", "head"),
        unit="1",
        range=(0.0, 1.0),
        formula="Σ_i (2i − n − 1) x_i / (n Σ_i x_i), x the attention that n keys receive, ascending",
        meaning="A rise: fewer tokens receive the attention; 0: all receive the same.",
        source="Gini 1912",
        title="Inequality of received attention",
        question="Do a few tokens receive most of the attention?",
        headline=("key_gini",),
    ),
    reads=("received", "key_mask"),
)
def key_gini(received: Tensor, key_mask: Tensor | None) -> Tensor:
    """Gini coefficient of received attention [..., B, H, Nk] over the real keys [..., B, Nk]: [..., B, H]."""
    if key_mask is None:
        key_mask = torch.ones_like(received[..., 0, :], dtype=torch.bool)
    real = key_mask[..., None, :]
    count = real.sum(-1)
    ascending = received.masked_fill(~real, 0.0).sort().values  # padding comes first, and weighs nothing
    place = torch.arange(1, received.shape[-1] + 1, device=received.device)
    place = place - (received.shape[-1] - count[..., None])
    total = ascending.sum(-1)
    return ((2 * place - count[..., None] - 1) * ascending).sum(-1) / (count * total)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--max-steps", type=int, default=30, help="optimizer steps")
    add("--every-n-steps", type=int, default=5, help="optimizer steps between two samples")
    add("--learning-rate", type=float, default=3e-3, help="of all steps")
    add("--length", type=int, default=64, help="tokens of a text")
    add("--seed", type=int, default=0, help="initial weights and order of the texts")
    add("--output", type=Path, default=Path("runs"), help="directory that the run goes to")
    args = parser.parse_args()
    pl.seed_everything(args.seed)
    ids = token_ids(args.length, VOCABULARY)
    logger = TensorBoardLogger(args.output, name="custom_metric")
    trainer = pl.Trainer(
        max_epochs=1,
        max_steps=args.max_steps,
        devices=1,
        logger=logger,
        callbacks=[GeometryMonitor(every_n_steps=args.every_n_steps, metrics=["entropy", "key_gini"])],
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module = LanguageModel(args.learning_rate, args.length)
    trainer.fit(module, DataLoader(TensorDataset(ids), batch_size=8, shuffle=True))
    history = load_history(logger.log_dir)
    for step, gini in zip(history.steps, history["key_gini"], strict=True):
        layers = ", ".join(f"{value:.3f}" for value in gini.mean(-1))
        print(f"step {step}: key_gini {gini.mean():.3f}, by layer {layers}")
    print(f"Try: lightning-geo show {logger.log_dir}")


if __name__ == "__main__":
    main()
