"""Attention patterns: as bytes and back, through an event file, and through sessions that void each other."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo import load_history
from lightning_geo.analysis.audit.record_hash import record_hash
from lightning_geo.storage import events
from lightning_geo.storage.patterns import AttentionPatterns, as_bytes
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from support.records import assert_same, make_record


def patterns(seed: int = 0, length: int = 9, tokens: tuple[str, ...] = ()) -> AttentionPatterns:
    side = min(length, 32)
    codes = np.random.default_rng(seed).integers(0, 256, (2, 3, side, side), np.uint8)
    return AttentionPatterns(codes, np.array([length, 0]), tokens)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_what_is_read_back_is_off_by_no_more_than_is_stated(values: list[float]) -> None:
    array = np.array(values).reshape(1, -1)
    stored = np.zeros((1, 1, 50, 50), np.uint8)
    stored[0, 0, 0, : len(values)] = as_bytes(array)
    read = AttentionPatterns(stored, np.array([50])).values(0, 0)[0, : len(values)]
    # and what float32 rounds
    assert (np.abs(read - array[0]) <= np.sqrt(array[0]) / 254 + 4e-6 + 1e-7).all()


def test_cells_without_a_value_have_none() -> None:
    codes = as_bytes(np.array([[[[np.nan, np.inf], [0.0, 1.0000001]]]]))
    read = AttentionPatterns(codes, np.array([2])).values(0, 0)
    np.testing.assert_array_equal(read, [[np.nan, np.nan], [0, 1]])


def test_a_layer_has_the_cells_of_its_own_length() -> None:
    codes = as_bytes(np.full((3, 1, 32, 32), 0.25))
    stored = AttentionPatterns(codes, np.array([4, 90, 0]))
    assert [stored.values(layer, 0).shape for layer in range(3)] == [(4, 4), (32, 32), (0, 0)]


@pytest.mark.parametrize(
    ("codes", "lengths"),
    [(np.zeros((2, 3, 4, 4)), [4, 4]), (np.zeros((2, 3, 4, 5), np.uint8), [4, 4]),
     (np.zeros((3, 4, 4), np.uint8), [4, 4, 4]), (np.zeros((2, 3, 4, 4), np.uint8), [4])],
)  # fmt: skip
def test_what_are_no_patterns_is_refused(codes: np.ndarray, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="Expected `"):
        AttentionPatterns(codes, np.array(lengths))


@pytest.mark.parametrize("tokens", [(), tuple(f"wörd{i}" for i in range(9))])
def test_an_event_file_gives_them_back(tmp_path: Path, tokens: tuple[str, ...]) -> None:
    several = {"encoder": patterns(tokens=tokens), "decoder": patterns(1, 40)}
    records = [
        replace(make_record(step, stacks=several, metrics=["entropy"]), patterns=several if step else {})
        for step in (0, 50, 100)
    ]
    sink = RecordFile(tmp_path, "geometry")
    for record in records:
        sink.write(record)
    history = load_history(tmp_path)
    for sample, record in enumerate(records):
        assert_same(history.record(sample), record)
    assert [*history.patterns("encoder")] == [50, 100]
    assert history.patterns("encoder")[100].tokens == tokens
    with pytest.raises(KeyError, match=r"ask for one of \['encoder', 'decoder'\]"):
        history.patterns()
    with pytest.raises(KeyError, match="'other'"):
        history.patterns("other")
    assert history["encoder/entropy"].shape == (3, 2, 3)


def test_a_resumed_session_voids_those_that_it_replaces(tmp_path: Path) -> None:
    for seed, resumed, steps in ((0, None, (0, 50, 100)), (1, 50, (50, 100))):
        sink = RecordFile(tmp_path, "geometry", resumed_at=resumed)
        for step in steps:
            sink.write(replace(make_record(step, metrics=["entropy"]), patterns={"encoder": patterns(seed)}))
    found = load_history(tmp_path).patterns()
    assert [*found] == [0, 50, 100]
    for step, seed in ((0, 0), (50, 1), (100, 1)):
        np.testing.assert_array_equal(found[step].codes, patterns(seed).codes)


def test_a_head_takes_about_a_kilobyte() -> None:
    bare = make_record(metrics=["entropy"], layers=6, heads=12)
    codes = np.full((6, 12, 32, 32), 7, np.uint8)
    words = tuple("token" for _ in range(128))
    full = replace(bare, patterns={"encoder": AttentionPatterns(codes, np.full(6, 128), words)})
    sizes = [len(events.record_event(record, "geometry").SerializeToString()) for record in (bare, full)]
    assert 1024 <= (sizes[1] - sizes[0]) / 72 <= 1056


def test_damaged_patterns_cost_no_sample(tmp_path: Path) -> None:
    record = replace(make_record(metrics=["entropy"]), patterns={"encoder": patterns()})
    event = events.record_event(record, "geometry")
    for value in list(event.summary.value):
        if value.tag.endswith("/lengths"):
            event.summary.value.remove(value)
    problems: list[str] = []
    parsed = events.parse_record(event, problems)
    assert parsed is not None
    assert (parsed[1].patterns, parsed[1]["entropy"].shape) == ({}, (2, 3))
    assert "attention patterns of 'encoder' at step 0" in problems[0]


def test_they_count_in_the_hash_of_a_record(tmp_path: Path) -> None:
    def hashed(*own: AttentionPatterns) -> str:
        path = tmp_path / str(len([*tmp_path.iterdir()]))
        record = make_record(metrics=["entropy"])
        for one in own:
            record.patterns["encoder"] = one
        RecordFile(path, "geometry").write(record)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return record_hash(load_history(path))

    words = tuple(map(str, range(9)))
    given = [hashed(*own) for own in ((), (patterns(),), (patterns(1),), (patterns(tokens=words),))]
    assert len({*given, hashed(patterns())}) == 4
    assert GeometryRecord({}).patterns == {}
