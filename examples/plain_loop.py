"""Fine-tune BERT to classify news in a loop of one's own, and watch the geometry of its attention.

The texts, model and learning rate of finetune_bert.py, without a trainer: 80 steps on the beginnings of the
texts, a minute on two cores. Afterwards: tensorboard --logdir runs
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

from lightning_geo import watch
from texts import loader, packaged_bert, split_texts, tokenizer_of


def parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--every-n-steps", type=int, default=10, help="optimizer steps between two samples of the geometry")
    add("--max-steps", type=int, default=80, help="stop after so many optimizer steps, or after one epoch")
    add("--learning-rate", type=float, default=1e-4, help="peak of the linear schedule")
    add("--batch-size", type=int, default=16, help="texts in a step")
    add("--length", type=int, default=64, help="tokens of a text that are read")
    add("--limit", type=int, help="use only so many texts, for a quick try")
    add("--seed", type=int, default=0, help="split, initial weights, order and dropout all follow from it")
    add("--output", type=Path, default=Path("runs"), help="directory that the run goes to")
    return parser


def accuracy(model: nn.Module, batches: DataLoader[dict[str, Tensor]]) -> float:
    """The share of texts whose class the model finds."""
    model.eval()
    right: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            right += list(model(**batch).logits.argmax(-1) == batch["labels"])
    return float(torch.stack(right).float().mean())


def main() -> None:
    args = parser().parse_args()
    torch.manual_seed(args.seed)
    model_name = packaged_bert()
    texts, held_out = split_texts(None, args.seed, args.limit)
    tokenizer = tokenizer_of(model_name)
    batches = partial(loader, tokenizer=tokenizer, length=args.length, batch_size=args.batch_size)
    training, validation = batches(texts, shuffle=True), batches(held_out, shuffle=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_name, num_labels=len(set(texts.labels)), local_files_only=True
    ).train()
    steps = min(args.max_steps, len(training))
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    logdir = args.output / "plain_loop"

    with watch(model, every_n_steps=args.every_n_steps, logdir=logdir, special_token_ids=special) as geometry:
        for _, batch in zip(range(steps), training, strict=False):
            model(**batch).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            geometry.step()

    entropy = geometry.metrics["geometry/normalized_entropy"]
    print(f"Normalized entropy of attention at the end: {entropy:.3f}. Record: {logdir}")
    found = accuracy(model, validation)
    print(f"Validation accuracy: {found:.3f} on {len(held_out.labels)} examples never trained on")


if __name__ == "__main__":
    main()
