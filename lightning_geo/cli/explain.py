"""``lightning-geo explain``: a text classifier's predictions, traced to its heads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_geo.cli.command import add_command, add_output, write_page
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import did_you_mean

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    text = "trace a classifier's predictions to its heads, as an HTML page (loads torch and transformers)"
    parser = add_command(commands, "explain", _run, text, monitor=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory with a Hugging Face text classifier and its tokenizer")
    add("--text", action="append", required=True, help="text to classify (repeatable)")
    add("--target", required=True, metavar="CLASS", help="index or name of the correct class")
    add("--contrast", metavar="CLASS",
        help="index or name of the class to compare with (default: the strongest other one)")  # fmt: skip
    add("--reference", type=Path, metavar="FILE",
        help="labelled texts, one per line: class index, tab, text; those predicted correctly show what is "
        "usual")  # fmt: skip
    add_output(parser, "explanation.html")


def _run(options: argparse.Namespace) -> int:
    page = _page_of(options.model, options.text, options.target, options.contrast, options.reference)
    write_page(options.output, page)
    return 0


def _page_of(
    model: str, texts: Sequence[str], target: str, contrast: str | None, reference: Path | None
) -> str:
    """Return the page about some texts.

    Args:
        model: Directory of the model and its tokenizer.
        texts: Texts to classify.
        target: Index or name of their correct class.
        contrast: Index or name of the class to compare with.
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
    names = getattr(classifier.config, "id2label", {})
    right, other = _class(target, names), None if contrast is None else _class(contrast, names)
    try:
        explanations = explain(classifier, batch, right, other, reference=known, tokenizer=tokenizer)
    except ValueError as error:
        raise RunError(str(error)) from error
    return explanation_page(explanations)


def _class(text: str, names: dict[int, str]) -> int:
    """Number of the class that a text names.

    Raises:
        RunError: If it is neither a number nor a name.
    """
    by_name = {name: number for number, name in names.items()}
    if text in by_name:
        return by_name[text]
    try:
        return int(text)
    except ValueError:
        raise RunError(f"The model has no class {text!r}. {did_you_mean(text, by_name)}") from None


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
