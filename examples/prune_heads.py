"""Fine-tune BERT, remove the heads that its loss does not depend on, and check that they are not missed.

Trains as finetune_bert.py does, with `importance` measured; then plans from the run's record alone, and
silences the plan's heads for real, beside random ones and importance alone. Leaves a model that no longer
has them, and a picture of what each number of heads costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from common import Classifier
from finetune_bert import parser
from lightning_geo import GeometryMonitor, apply_plan, evaluate_plan, load_history, pruning_plan
from lightning_geo.interventions.ablation import PruningCurve
from texts import loader, split_texts, tokenizer_of


def right(output: Any, batch: dict[str, Tensor]) -> Tensor:
    """For each text whether its class was found."""
    found: Tensor = output.logits.argmax(-1)
    return (found == batch["labels"]).float()


def behind(output: Any, *, labels: Tensor, **_: Tensor) -> Tensor:
    """How far the right classes are behind the strongest others, to measure importance by.

    Cross-entropy is flat where a text is classified well, as most are after training: what it says of heads
    then comes from a few texts.
    """
    own = labels[:, None]
    right, other = output.logits.gather(1, own), output.logits.scatter(1, own, -torch.inf)
    lag: Tensor = other.amax(1) - right.squeeze(1)
    return lag.sum()


def draw(curve: PruningCurve, path: Path) -> None:
    """Accuracy against heads removed."""
    x = [0, *curve.removed]
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for seed in curve.random:
        axis.plot(x, [curve.whole, *seed], color="0.75", linewidth=1, label="random (10 orders)")
    axis.plot(x, [curve.whole, *curve.plan], color="#0a62a8", linewidth=3, label="plan")
    axis.plot(x, [curve.whole, *curve.importance], "--", color="#f2a65a", label="importance alone")
    axis.set(xlabel=f"heads removed, of {curve.total}", ylabel="validation accuracy", xlim=(0, curve.total))
    shown = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(shown.values(), shown.keys(), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    options = parser(__doc__, learning_rate=1e-4)
    options.add_argument("--fraction", type=float, default=0.5, help="share of the heads to remove")
    options.add_argument("--seeds", type=int, default=10, help="random orders to compare with")
    args = options.parse_args()
    pl.seed_everything(args.seed)
    training, validation = split_texts(args.dataset, args.seed, args.limit)
    tokenizer = tokenizer_of(args.model)
    train, test = (
        loader(texts, tokenizer=tokenizer, length=args.length, batch_size=args.batch_size, shuffle=shuffle)
        for texts, shuffle in ((training, True), (validation, False))
    )
    # what is measured decides what is removed: not on the texts that the result is reported on
    probe = loader(training.pick(range(0, len(training.labels), max(1, len(training.labels) // 64))),
                   tokenizer=tokenizer, length=args.length, batch_size=64, shuffle=False)  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, id2label=dict(enumerate(training.classes)), local_files_only=Path(args.model).is_dir()
    )
    monitor = GeometryMonitor(
        every_n_steps=max(args.every_n_steps, 50),
        metrics=["importance", "head"],
        probe=probe,
        probe_size=64,
        loss_fn=behind,
    )
    logger = TensorBoardLogger(args.output, name="prune_heads")
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        max_steps=args.max_steps,
        devices=1,
        logger=logger,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(model, args.learning_rate), train)

    plan = pruning_plan(load_history(logger.log_dir), args.fraction)
    points = sorted({plan.count // 2, plan.count, round(0.8 * len(plan.ranking))} - {0})
    curve = evaluate_plan(model, test, plan, right, removed=points, seeds=args.seeds)
    print(curve)
    pruned = apply_plan(model, plan, next(iter(test)), shrink=True)
    print(pruned)
    torch.save(pruned.model, Path(logger.log_dir) / "pruned.pt")
    draw(curve, Path(logger.log_dir) / "prune_heads.png")
    print(f"The ranking with its reasons: lightning-geo heads {logger.log_dir} --fraction {args.fraction}")


if __name__ == "__main__":
    main()
