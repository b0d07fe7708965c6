"""Trace the mispredictions of a text classifier to its heads, and check that by silencing them.

Takes what finetune_bert.py trains with --save. For each validation text that the model gets wrong: are the
five most blamed heads the ones that do it? Silenced, they should correct more texts than five random ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from lightning_geo import explain
from lightning_geo.analysis.pruning import Head
from lightning_geo.interventions.ablation import Silencer
from lightning_geo.observe.replay.undisturbed_run import Call, undisturbed
from lightning_geo.report.explanation_page import explanation_page
from texts import loader, split_texts, tokenizer_of

COUNT = 5


def corrected(model: Any, batch: dict[str, Tensor], heads: Sequence[Head]) -> bool:
    """Whether a text's class is found with these heads silenced."""
    silencer = Silencer(model, Call.from_batch(batch))
    with undisturbed(model), silencer.silenced(heads):
        return bool(model(**batch).logits.argmax() == batch["labels"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="directory of a fine-tuned classifier and its tokenizer")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text that are read")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the random heads")
    parser.add_argument("--draws", type=int, default=20, help="random sets of heads for each text")
    parser.add_argument("--references", type=int, default=60, help="texts that say what is usual")
    parser.add_argument("--limit", type=int, help="look at so many texts only, for a quick try")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="directory that the page goes to")
    args = parser.parse_args()

    tokenizer = tokenizer_of(args.model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(args.model, local_files_only=True).eval()
    training, validation = split_texts(None, args.seed, args.limit)
    batches = partial(loader, tokenizer=tokenizer, length=args.length, shuffle=False)
    with torch.no_grad():
        right = [
            bool(model(**batch).logits.argmax() == batch["labels"])
            for batch in batches(validation, batch_size=1)
        ]
    wrong = validation.pick([i for i, found in enumerate(right) if not found])
    if not wrong.labels:
        raise SystemExit("The model gets every text right: there is nothing to explain.")
    [batch] = batches(wrong, batch_size=len(wrong.labels))
    reference = batches(training.pick(range(args.references)), batch_size=16)
    explanations = explain(model, batch, wrong.labels, reference=reference, tokenizer=tokenizer)

    random = np.random.default_rng(args.seed)
    by_blame, by_chance = [], []
    for one, explanation in zip(batches(wrong, batch_size=1), explanations, strict=True):
        heads = [
            Head(stack, int(layer), int(head))
            for stack, values in explanation.contributions.items()
            for layer, head in np.argwhere(np.isfinite(values))
        ]
        by_blame.append(corrected(model, one, [head for head, _ in explanation.blamed(COUNT)]))
        drawn = (random.choice(len(heads), COUNT, replace=False) for _ in range(args.draws))
        by_chance.append(float(np.mean([corrected(model, one, [heads[i] for i in draw]) for draw in drawn])))

    more = np.array(by_blame, float) - np.array(by_chance)
    low, high = np.percentile([random.choice(more, len(more)).mean() for _ in range(10_000)], (2.5, 97.5))
    print(
        f"{len(explanations)} of {len(right)} texts are mispredicted. Silencing the {COUNT} most blamed "
        f"heads corrects {sum(by_blame)}, {COUNT} random ones {sum(by_chance):.1f} (mean of {args.draws} "
        f"draws).\nPaired difference: {more.mean():.2f} of the mispredictions, 95 % confidence {low:.2f} to "
        f"{high:.2f} (bootstrap over texts)."
    )
    page = explanation_page(explanations)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "explanation.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
