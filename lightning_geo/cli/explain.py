"""``lightning-geo explain``: a text classifier's predictions, traced to its heads. Loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_geo.interventions.explanation import explain
from lightning_geo.report.explanation_page import explanation_page
from lightning_geo.utils.errors import RunError

__all__ = ["page_of"]


def page_of(
    model: str, texts: Sequence[str], target: int, contrast: int | None, reference: Path | None
) -> str:
    """Return the page about some texts.

    Args:
        model: Directory of the model and its tokenizer.
        texts: What to classify.
        target: The class that they should be.
        contrast: The class to compare with.
        reference: File of labelled texts.

    Raises:
        RunError: If the model or the file cannot be read, or the classes are none of the model's.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not Path(model).is_dir():
        raise RunError(f"{model!r} is no directory: expected one with a model and its tokenizer.")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
        classifier: Any = AutoModelForSequenceClassification.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RunError(f"{model!r} holds no text classifier with its tokenizer: {error}") from error

    tokenizer.padding_side = "right"
    known = None
    if reference is not None:
        known = [
            {**tokenizer(text, truncation=True, return_tensors="pt"), "labels": torch.tensor([label])}
            for label, text in _labelled(reference)
        ]
    batch = dict(tokenizer(list(texts), truncation=True, padding=True, return_tensors="pt"))
    try:
        explanations = explain(
            classifier, batch, target, contrast, reference=known, special_token_ids=_parked_on(tokenizer)
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    tokens = [
        tokenizer.convert_ids_to_tokens(ids[: int(mask.sum())].tolist())
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    names = getattr(classifier.config, "id2label", {})
    return explanation_page(explanations, tokens, [names.get(i, str(i)) for i in range(len(names))])


def _parked_on(tokenizer: Any) -> list[int]:
    """Ids of the marks that a text begins, ends or is divided with."""
    marks = (getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos"))
    return sorted({mark for mark in marks if mark is not None})


def _labelled(path: Path) -> list[tuple[int, str]]:
    """Lines of a class number, a tab and a text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        parts = [line.partition("\t") for line in lines if line.strip()]
        return [(int(label), text) for label, _, text in parts]
    except (OSError, ValueError) as error:
        raise RunError(
            f"{str(path)!r} is no file of lines with a class number, a tab and a text: {error}."
        ) from error
