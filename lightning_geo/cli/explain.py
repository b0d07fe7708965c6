"""``lightning-geo explain``: a text classifier's predictions, traced to its heads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_geo.cli.command import add_command, add_output, write_page
from lightning_geo.utils.errors import RunError

__all__ = ["add_parser", "page_of"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    text = "trace a classifier's predictions to its heads, as an HTML page (loads torch and transformers)"
    parser = add_command(commands, "explain", _run, text, monitor=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory with a Hugging Face text classifier and its tokenizer")
    add("--text", action="append", required=True, help="text to classify (repeatable)")
    add("--target", type=int, required=True, help="index of the correct class")
    add("--contrast", type=int, help="index of the class to compare with (default: the strongest other one)")
    add("--reference", type=Path, metavar="FILE",
        help="labelled texts, one per line: class index, tab, text; those predicted correctly show what is "
        "usual")  # fmt: skip
    add_output(parser, "explanation.html")


def _run(options: argparse.Namespace) -> int:
    page = page_of(options.model, options.text, options.target, options.contrast, options.reference)
    write_page(options.output, page)
    return 0


def page_of(
    model: str, texts: Sequence[str], target: int, contrast: int | None, reference: Path | None
) -> str:
    """Return the page about some texts.

    Args:
        model: Directory of the model and its tokenizer.
        texts: Texts to classify.
        target: Index of their correct class.
        contrast: Index of the class to compare with.
        reference: File of labelled texts.

    Raises:
        RunError: If the model or the file cannot be read, or the model has no such class.
    """
    # imported here: no other command needs torch, whose import takes seconds
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from lightning_geo.interventions.explanation import explain
    from lightning_geo.report.explanation_page import explanation_page

    if not Path(model).is_dir():
        raise RunError(f"{model!r} is not a directory. Name one with a model and its tokenizer.")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
        classifier: Any = AutoModelForSequenceClassification.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot load a text classifier and its tokenizer from {model!r}: {error}") from error

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
    """Ids of the tokens that begin, end and separate texts: heads park their attention on them."""
    marks = (getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos"))
    return sorted({mark for mark in marks if mark is not None})


def _labelled(path: Path) -> list[tuple[int, str]]:
    """Class and text of each line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        parts = [line.partition("\t") for line in lines if line.strip()]
        return [(int(label), text) for label, _, text in parts]
    except (OSError, ValueError) as error:
        raise RunError(
            f"Cannot read {str(path)!r} as lines of class index, tab and text: {error}."
        ) from error
