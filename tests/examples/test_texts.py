"""The texts that the examples train on: no story on both sides of the split, nothing lost on the way."""

from __future__ import annotations

import csv
import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from texts import bbc_news, distinct, hub_texts, loader, packaged_bert, split_texts, tokenizer_of


def sequences(document: str, width: int = 8) -> set[str]:
    words = re.findall(r"\w+", document.lower())
    return {" ".join(words[i : i + width]) for i in range(len(words) - width + 1)}


def test_no_story_is_on_both_sides():
    training, validation = split_texts(None, seed=0, limit=None)
    trained_on = [sequences(document) for document in training.documents]
    holders: dict[str, list[int]] = {}
    for index, known in enumerate(trained_on):
        for sequence in known:
            holders.setdefault(sequence, []).append(index)
    for document in validation.documents:
        own = sequences(document)
        shared = Counter(index for sequence in own for index in holders.get(sequence, ()))
        for index, count in shared.items():
            assert count < min(len(own), len(trained_on[index])) / 2, (document, training.documents[index])


def test_bbc_news_loses_reprints_only():
    texts = bbc_news()
    # 2,225 files hold 2,124 texts that differ in more than blanks and case; 67 of those differ in a few words
    assert 2000 < len(texts.documents) < 2124
    assert set(texts.labels) == set(range(5))
    assert len({" ".join(d.lower().split()) for d in texts.documents}) == len(texts.documents)


def test_split_holds_out_a_fifth_of_each_class():
    training, validation = split_texts(None, seed=0, limit=None)
    for label in range(5):
        held_out = validation.labels.count(label)
        assert held_out / (held_out + training.labels.count(label)) == pytest.approx(0.2, abs=0.005)


def test_split_follows_the_seed():
    first, again, other = (split_texts(None, seed, 40)[1].documents for seed in (0, 0, 1))
    assert first == again
    assert first != other


words = st.lists(st.integers(0, 10**6).map(str), min_size=16, max_size=40, unique=True)


@settings(max_examples=30)
@given(st.lists(words, min_size=1, max_size=5), st.data())
def test_distinct_keeps_one_of_each_story(stories, data):
    stories = [[f"{number}s{word}" for word in story] for number, story in enumerate(stories)]
    copies = [
        (number, " ".join(story[: data.draw(st.integers(len(story) // 2, len(story)))]).upper())
        for number, story in enumerate(stories)
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    copies = data.draw(st.permutations(copies))
    kept = distinct([text for _, text in copies])
    assert sorted(copies[index][0] for index in kept) == list(range(len(stories)))
    # of each story the longest copy
    for index in kept:
        number, text = copies[index]
        assert len(text) == max(len(other) for story, other in copies if story == number)


def test_short_documents_are_kept_unless_equal():
    assert distinct(["one two", "three four", "one two"]) == [0, 1]


def test_batches_hold_every_text_once():
    _, texts = split_texts(None, seed=0, limit=40)
    tokenizer = tokenizer_of(packaged_bert())
    batches = list(loader(texts, tokenizer=tokenizer, length=32, batch_size=4, shuffle=False))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == texts.labels
    ids = [row for batch in batches for row in batch["input_ids"]]
    masks = [row.bool() for batch in batches for row in batch["attention_mask"]]
    for row, mask, document in zip(ids, masks, texts.documents, strict=True):
        assert row[mask].tolist() == tokenizer(document, truncation=True, max_length=32)["input_ids"]


def write(path, rows, columns=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_hub_dataset_keeps_its_own_split(tmp_path):
    write(tmp_path / "train.csv", [("good", "pos"), ("bad", "neg")])
    write(tmp_path / "test.csv", [("fine", "pos")])
    training, validation = hub_texts(str(tmp_path))
    assert (training.documents, training.labels) == (["good", "bad"], [1, 0])
    assert (validation.documents, validation.labels) == (["fine"], [1])


def test_hub_dataset_without_a_split(tmp_path):
    write(tmp_path / "train.csv", [(f"text {i}", i % 2) for i in range(20)])
    assert hub_texts(str(tmp_path))[1] is None
    training, validation = split_texts(str(tmp_path), seed=0, limit=None)
    assert (len(training.documents), len(validation.documents)) == (16, 4)
    assert not set(training.documents) & set(validation.documents)


def test_hub_dataset_with_other_columns_says_so(tmp_path):
    write(tmp_path / "train.csv", [("good", 1)], columns=("sentence", "label"))
    with pytest.raises(SystemExit, match=r"lacks .'text'.. It has .'sentence', 'label'"):
        hub_texts(str(tmp_path))
