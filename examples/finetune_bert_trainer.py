"""Fine-tune BERT to classify news with transformers' Trainer, and watch the geometry of its attention.

The texts, model and learning rate of finetune_bert.py, without Lightning: 80 steps on the beginnings of the
texts, a minute on two cores. Afterwards: tensorboard --logdir runs
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from lightning_geo import GeometryCallback
from texts import Texts, packaged_bert, split_texts, tokenizer_of


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--report-to", choices=["tensorboard", "wandb", "none"], default="tensorboard", help="of the Trainer")
    add("--every-n-steps", type=int, default=10, help="optimizer steps between two samples of the geometry")
    add("--max-steps", type=int, default=80, help="stop after so many optimizer steps; -1 for one epoch")
    add("--save-steps", type=int, help="save a checkpoint, with the monitor's state, every so many steps")
    add("--resume", action="store_true", help="go on from the newest checkpoint")
    add("--learning-rate", type=float, default=1e-4, help="peak of the linear schedule")
    add("--batch-size", type=int, default=16, help="texts in a step")
    add("--length", type=int, default=64, help="tokens of a text that are read")
    add("--limit", type=int, help="use only so many texts, for a quick try")
    add("--seed", type=int, default=0, help="split, initial weights, order and dropout all follow from it")
    add("--output", type=Path, default=Path("runs"), help="directory that the run goes to")
    return parser


def rows(texts: Texts, tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Token ids and class of each text; the collator pads."""
    encoded = tokenizer(texts.documents, truncation=True, max_length=length)["input_ids"]
    return [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, texts.labels, strict=True)]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    classes = np.asarray(prediction.predictions).argmax(-1)
    return {"accuracy": float((classes == prediction.label_ids).mean())}


def main() -> None:
    args = parser().parse_args()
    model_name = packaged_bert()
    training, validation = split_texts(None, args.seed, args.limit)
    tokenizer = tokenizer_of(model_name)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_name, num_labels=len(set(training.labels)), local_files_only=True
    )
    output = args.output / "finetune_bert_trainer"
    if args.report_to == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
    arguments = TrainingArguments(
        output_dir=str(output),
        report_to=args.report_to,
        num_train_epochs=1,
        max_steps=args.max_steps,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=0.01,
        warmup_steps=10,
        logging_steps=5,
        seed=args.seed,
        use_cpu=True,
    )
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    trainer = Trainer(
        model,
        arguments,
        DataCollatorWithPadding(tokenizer),
        rows(training, tokenizer, args.length),
        rows(validation, tokenizer, args.length),
        compute_metrics=accuracy,
        callbacks=[GeometryCallback(every_n_steps=args.every_n_steps, special_token_ids=special)],
    )
    trainer.train(resume_from_checkpoint=args.resume or None)
    found = trainer.evaluate()["eval_accuracy"]
    count = len(validation.labels)
    print(f"Validation accuracy: {found:.3f} on {count} examples never trained on")


if __name__ == "__main__":
    main()
