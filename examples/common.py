"""What the examples share: command-line options, loggers, the LightningModule and one training run."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from lightning_geo import GeometryMonitor

Batch = dict[str, Tensor]


def options(description: str | None, *, epochs: int, learning_rate: float) -> argparse.ArgumentParser:
    """The options that every example takes; ``description`` is the script's docstring."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    add = parser.add_argument
    add("--logger", action="append", choices=["tensorboard", "wandb", "csv"], help="repeatable (tensorboard)")
    add("--wandb-online", action="store_true", help="send the W&B run to the server, not only to disk")
    add("--every-n-steps", type=int, default=10, help="optimizer steps between two samples of the geometry")
    add("--metrics", nargs="+", metavar="NAME", help="metrics and families to measure (the default ones)")
    add("--probe", choices=["recorded", "validation", "none"], default="recorded",
        help="inputs that are sampled: the first ones that the trainer feeds, one batch of the validation "
        "set, or none, that is the training batch of the sampled step")  # fmt: skip
    add("--epochs", type=int, default=epochs, help="passes over the training set")
    add("--max-steps", type=int, default=-1, help="stop after so many optimizer steps; -1 for no limit")
    add("--learning-rate", type=float, default=learning_rate, help="peak of the linear schedule")
    add("--batch-size", type=int, default=16, help="examples in a step")
    add("--limit", type=int, help="use only so many examples, for a quick try")
    add("--seed", type=int, default=0, help="split, initial weights, order and dropout all follow from it")
    add("--output", type=Path, default=Path("runs"), help="directory that the runs go to")
    return parser


def loggers(args: argparse.Namespace, name: str) -> list[Logger]:
    """The loggers asked for; W&B is imported only if it is one of them."""
    found: list[Logger] = []
    for kind in dict.fromkeys(args.logger or ["tensorboard"]):
        if kind == "tensorboard":
            found.append(TensorBoardLogger(args.output, name=name))
        elif kind == "csv":
            found.append(CSVLogger(args.output, name=name))
        else:
            from pytorch_lightning.loggers import WandbLogger

            args.output.mkdir(parents=True, exist_ok=True)  # else W&B writes to the temporary directory
            offline = not args.wandb_online
            found.append(WandbLogger(name, save_dir=args.output, project="lightning_geo", offline=offline))
    return found


def quiet() -> None:
    """Silence what Lightning and transformers say of themselves, which would fill a notebook."""
    for name in ("lightning", "lightning_fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


class Classifier(pl.LightningModule):
    """Trains any transformers model whose forward takes ``labels`` and returns ``loss`` and ``logits``."""

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.model = model.train()  # weights that were loaded come in eval mode, without dropout
        self.learning_rate = learning_rate

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        output = self.model(**batch)
        right = (output.logits.argmax(-1) == batch["labels"]).float().mean()
        self.log_dict({"val/loss": output.loss, "val/accuracy": right}, batch_size=len(batch["labels"]))

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.learning_rate, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def monitor(
    args: argparse.Namespace, validation: DataLoader[Any], special_token_ids: list[int] | None
) -> GeometryMonitor:
    """The callback, on the inputs that ``--probe`` asks for."""
    return GeometryMonitor(
        every_n_steps=args.every_n_steps,
        metrics=args.metrics,
        source="batch" if args.probe == "none" else "probe",
        probe=next(iter(validation)) if args.probe == "validation" else None,
        special_token_ids=special_token_ids,
    )


def train(
    args: argparse.Namespace,
    name: str,
    model: nn.Module,
    loaders: tuple[DataLoader[Any], DataLoader[Any]],
    special_token_ids: list[int] | None = None,
    tokenizer: Any = None,
) -> float:
    """Train on the first loader, print and return the accuracy on the second."""
    training, validation = loaders
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        max_steps=args.max_steps,
        devices=1,
        logger=loggers(args, name),
        callbacks=[monitor(args, validation, special_token_ids)],
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    classifier = Classifier(model, args.learning_rate)
    classifier.tokenizer = tokenizer  # its words stand beside the attention patterns in the record
    trainer.fit(classifier, training, validation)
    [metrics] = trainer.validate(classifier, validation, verbose=False)
    accuracy = metrics["val/accuracy"]
    print(f"Validation accuracy: {accuracy:.3f} on {len(validation.dataset)} examples never trained on")  # type: ignore[arg-type]
    return accuracy
