"""What a run logged beside its geometry: loss, validation score, learning rate, epochs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["ROLES", "curve_tags", "epochs_of", "evaluation_tag", "suggested", "thinned"]

#: What a curve can be.
ROLES = ("loss", "score", "rate")

_TRAINING = {"train", "training"}
_VALIDATION = {"val", "valid", "validation", "eval", "evaluation", "dev"}
_TEST = {"test", "testing"}
#: Words of scores, those that say most first.
_SCORES = (
    "accuracy", "acc", "f1", "auroc", "auc", "map", "miou", "iou", "dice", "mcc", "spearman", "pearson",
    "bleu", "rouge", "rouge1", "rougel", "meteor", "em", "wer", "cer", "r2", "precision", "recall",
    "perplexity", "ppl", "score", "reward",
)  # fmt: skip
_NO_RATE = {"momentum", "weight", "decay", "wd", "beta"}
_POINTS = 1000  # of a curve that are sent
_EPOCHS = 200  # boundaries of epochs that are sent


def curve_tags(listing: Iterable[str], monitors: Iterable[str]) -> list[str]:
    """Return the tags that a run logged beside the scalars of its monitors.

    Example:
        >>> curve_tags(["geometry/entropy", "geometry_cone/cone/layer_00", "train/loss"], ["geometry"])
        ['train/loss']
    """
    ours = tuple(f"{monitor}{mark}" for monitor in monitors for mark in "/_")
    return sorted(tag for tag in listing if not tag.startswith(ours))


def suggested(tags: Sequence[str]) -> dict[str, str | None]:
    """Return the tag of each role by its name, None where no name says so.

    The loss is of training, the score of validation: its loss if no other number was logged.

    Example:
        >>> suggested(["epoch", "lr-AdamW", "lr-AdamW-momentum", "train/loss", "val/acc", "val/loss"])
        {'loss': 'train/loss', 'score': 'val/acc', 'rate': 'lr-AdamW'}
        >>> suggested(["eval_loss", "loss"])
        {'loss': 'loss', 'score': 'eval_loss', 'rate': None}
        >>> suggested(["gradient_norm"])
        {'loss': None, 'score': None, 'rate': None}
    """
    by_tag = {tag: _words(tag) for tag in tags}
    validation = {tag: words for tag, words in by_tag.items() if _is_validation(words)}
    losses = [
        (not _TRAINING & {*words}, words[-1] == "epoch", len(words), tag)
        for tag, words in by_tag.items()
        if "loss" in words and not {*words} & (_VALIDATION | _TEST)
    ]
    scores = [
        (min(_SCORES.index(word) for word in words if word in _SCORES), len(words), tag)
        for tag, words in validation.items()
        if {*words} & {*_SCORES}
    ] or [(0, len(words), tag) for tag, words in validation.items() if "loss" in words]
    rates = [(len(words), tag) for tag, words in by_tag.items() if _is_rate(words)]
    return {
        "loss": min(losses)[-1] if losses else None,
        "score": min(scores)[-1] if scores else None,
        "rate": min(rates)[-1] if rates else None,
    }


def evaluation_tag(tags: Sequence[str]) -> str | None:
    """Return a tag with a number for each evaluation, None where there is none."""
    return suggested(tags)["score"] or next((tag for tag in tags if _is_validation(_words(tag))), None)


def epochs_of(data: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the steps at which an epoch was first logged, each with its number; none if there are very many.

    Args:
        data: Of the tag ``epoch`` with ``step`` and ``value``; a number may be a fraction.
    """
    begun: list[tuple[int, int]] = []
    for datum in data:
        if not math.isfinite(datum.value):
            continue
        epoch = math.floor(datum.value)
        if not begun or epoch > begun[-1][1]:
            begun.append((int(datum.step), epoch))
    return begun if len(begun) <= _EPOCHS else []


def thinned(data: Sequence[Any], most: int = _POINTS) -> Mapping[str, Any]:
    """Return a curve as it is sent: ``steps`` and ``values``, null for what is not finite.

    Of a longer one the lowest and the highest of each stretch are kept, so that no spike is lost, and
    whatever is not finite.

    Args:
        data: With ``step`` and ``value``, in the order of steps.
        most: Points at most, but for those that are not finite.
    """
    kept: Iterable[int] = range(len(data))
    if len(data) > most:
        size = -(-2 * len(data) // (most - 2))
        shown = {0, len(data) - 1}
        for start in range(0, len(data), size):
            stretch = range(start, min(start + size, len(data)))
            finite = [i for i in stretch if math.isfinite(data[i].value)]
            shown.update(i for i in stretch if not math.isfinite(data[i].value))
            if finite:
                shown |= {min(finite, key=lambda i: data[i].value), max(finite, key=lambda i: data[i].value)}
        kept = sorted(shown)
    values = [float(data[i].value) for i in kept]
    return {
        "steps": [int(data[i].step) for i in kept],
        "values": [value if math.isfinite(value) else None for value in values],
    }


def _words(tag: str) -> list[str]:
    """``train/myLoss_step`` as train, my, loss, step."""
    return re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", tag).lower()) or [tag]


def _is_validation(words: list[str]) -> bool:
    # Lightning logs `…_step` and `…/epoch_3` by batches of validation: other steps than those of training
    counted = words[-1] == "step" or (len(words) > 1 and words[-2] == "epoch")
    return bool({*words} & _VALIDATION) and not counted


def _is_rate(words: list[str]) -> bool:
    named = {"lr", "learningrate"} & {*words} or "learning rate" in " ".join(words)
    return bool(named) and not {*words} & _NO_RATE
