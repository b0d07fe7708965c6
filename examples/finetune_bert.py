"""Fine-tune BERT to classify news and watch the geometry of its attention while it learns.

By default everything comes with Python packages and nothing is downloaded: a 6-layer BERT, and BBC News in
five classes. Afterwards: tensorboard --logdir runs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from common import options, train
from texts import loader, packaged_bert, split_texts, tokenizer_of


def parser(description: str | None, *, learning_rate: float) -> argparse.ArgumentParser:
    """The options of an example that classifies texts."""
    parser = options(description, epochs=1, learning_rate=learning_rate)
    parser.add_argument("--model", default=packaged_bert(), help="a directory, or a name on the hub")
    parser.add_argument("--dataset", help="a hub dataset with columns `text` and `label` (packaged BBC News)")
    parser.add_argument("--save", type=Path, help="directory to keep the trained model and its tokenizer in")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text that are read")
    return parser


def run(
    args: argparse.Namespace,
    name: str,
    adapt: Callable[[PreTrainedModel], nn.Module] = lambda model: model,
) -> float:
    """Train ``adapt(model)`` as ``args`` say and return the validation accuracy."""
    pl.seed_everything(args.seed)
    training, validation = split_texts(args.dataset, args.seed, args.limit)
    tokenizer = tokenizer_of(args.model)
    batches = partial(loader, tokenizer=tokenizer, length=args.length, batch_size=args.batch_size)
    loaders = batches(training, shuffle=True), batches(validation, shuffle=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model,
        id2label=dict(enumerate(training.classes)),
        local_files_only=Path(args.model).is_dir(),
    )
    # BERT's config does not name the tokens that heads park on; the tokenizer does
    marks = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    special = sorted({mark for mark in marks if mark is not None})
    accuracy = train(args, name, adapt(model), loaders, special, tokenizer)
    if args.save is not None:
        for part in (model, tokenizer):
            part.save_pretrained(args.save)
    return accuracy


def main() -> None:
    run(parser(__doc__, learning_rate=1e-4).parse_args(), "finetune_bert")


if __name__ == "__main__":
    main()
