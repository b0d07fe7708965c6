"""The route ``head`` through TensorBoard's own application: patterns of one head, and its twins."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from werkzeug.test import Client

from dashboard.providers import ask, client_of, eventually, provider_of, write_run
from lightning_geo.storage import events
from lightning_geo.storage.patterns import AttentionPatterns
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from support.records import make_record

HOSTILE = '<img src=x onerror="alert(1)">'
LENGTH = 40
WORDS = (HOSTILE, "wörd", *map(str, range(LENGTH - 2)))


def codes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 4, 32, 32), np.uint8)


def sample(step: int, seed: int, *, kept: bool = True, words: tuple[str, ...] = WORDS) -> GeometryRecord:
    """Layer 0 has 40 tokens, layer 1 has 5, layer 2 has none; head 2 of layer 0 is like head 3."""
    record = make_record(step, layers=3, heads=4, metrics=["entropy"], wall_time=time.time())
    if not kept:
        return record
    similarity = np.full((3, 4, 4), 0.1, np.float32)
    similarity[:, range(4), range(4)] = 1
    similarity[0, 2, 3] = similarity[0, 3, 2] = 0.5 + seed / 100
    similarity[1] = np.nan
    patterns = AttentionPatterns(codes(seed), np.array([LENGTH, 5, 0]), words)
    return replace(
        record, patterns={"encoder": patterns}, matrices={"encoder": {"head_similarity": similarity}}
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    write_run(directory / HOSTILE, [sample(step, step, kept=step != 10) for step in (0, 10, 20)])
    write_run(directory / "bare", [sample(step, 0, kept=False) for step in (0, 10)])
    write_run(directory / "resumed", [sample(step, 1) for step in (0, 10, 20)])
    later = (sample(step, 2, words=()) for step in (10, 30))  # measured when it is resumed
    write_run(directory / "resumed", later, resumed_at=10)
    sink = RecordFile(directory / "damaged", "geometry")
    event = events.record_event(sample(0, 0), "geometry")
    for value in list(event.summary.value):
        if value.tag.endswith("/lengths"):
            event.summary.value.remove(value)
    sink._append(event)
    sink.close()
    return directory


@pytest.fixture(scope="module", params=["fast", "slow"])
def client(request: pytest.FixtureRequest, runs: Path) -> Client:
    client = client_of(provider_of(request.param, runs))
    names = {HOSTILE, "bare", "resumed", "damaged"}
    eventually(lambda: names <= {run["run"] for run in ask(client, "index").json["runs"]})
    eventually(lambda: [s["step"] for s in head(client, "resumed")[0]["samples"]] == [0, 10, 30])
    eventually(lambda: len(head(client, HOSTILE)[0]["samples"]) == 2)
    return client


def asked(client: Client, run: str, layer: int | str = 0, number: int | str = 2) -> Any:
    return ask(client, "head", run=run, monitor="geometry", stack="encoder", layer=layer, head=number)


def head(client: Client, run: str, layer: int = 0, number: int = 2) -> tuple[Any, list[np.ndarray]]:
    """The header, and each sample's bytes."""
    answer = asked(client, run, layer, number)
    assert answer.status_code == 200, answer.text
    length = int.from_bytes(answer.data[:4], "little")
    header, at, cells = json.loads(answer.data[4 : 4 + length]), 4 + length, []
    for each in header["samples"]:
        side = each["side"]
        cells.append(np.frombuffer(answer.data, np.uint8, side * side, at).reshape(side, side))
        at += side * side
    assert at == len(answer.data)
    return header, cells


def test_a_head_has_its_patterns_at_the_samples_that_keep_them(client: Client) -> None:
    header, cells = head(client, HOSTILE)
    assert [(s["step"], s["side"], s["length"], s["tokens"]) for s in header["samples"]] == [
        (0, 32, LENGTH, 0), (20, 32, LENGTH, 0),
    ]  # fmt: skip
    assert header["tokens"] == [list(WORDS)]
    for step, found in zip((0, 20), cells, strict=True):
        np.testing.assert_array_equal(found, codes(step)[0, 2])
    assert header["kept"]


def test_a_layer_of_fewer_tokens_has_fewer_cells_and_not_the_others_words(client: Client) -> None:
    header, cells = head(client, HOSTILE, layer=1)
    assert [(s["side"], s["length"], s["tokens"]) for s in header["samples"]] == [(5, 5, -1)] * 2
    np.testing.assert_array_equal(cells[0], codes(0)[1, 2, :5, :5])
    assert header["tokens"] == []


def test_what_has_no_pattern_says_so(client: Client) -> None:
    header, _ = head(client, HOSTILE, layer=2)
    assert (header["samples"], header["kept"]) == ([], True)
    header, _ = head(client, "bare")
    assert (header["samples"], header["twins"], header["kept"]) == ([], [], False)
    assert head(client, HOSTILE, layer=77)[0]["samples"] == []
    assert head(client, HOSTILE, number=77)[0]["samples"] == []


def test_the_twin_is_the_most_similar_other_head(client: Client) -> None:
    twins = head(client, HOSTILE)[0]["twins"]
    assert [(twin["step"], twin["head"]) for twin in twins] == [(0, 3), (20, 3)]
    np.testing.assert_allclose([twin["similarity"] for twin in twins], [0.5, 0.7], rtol=1e-6)
    assert head(client, HOSTILE, layer=1)[0]["twins"] == []


def test_a_resumed_session_voids_what_it_replaces(client: Client) -> None:
    header, cells = head(client, "resumed")
    assert [(s["step"], s["tokens"]) for s in header["samples"]] == [(0, 0), (10, -1), (30, -1)]
    for seed, found in zip((1, 2, 2), cells, strict=True):
        np.testing.assert_array_equal(found, codes(seed)[0, 2])


@pytest.mark.parametrize(
    ("run", "layer", "number", "status"),
    [(HOSTILE, -1, 0, 400), (HOSTILE, "x", 0, 400), (HOSTILE, 0, "", 400), ("damaged", 0, 0, 400)],
)
def test_what_cannot_be_answered_is_said_in_plain_text(
    client: Client, run: str, layer: int | str, number: int | str, status: int
) -> None:
    answer = asked(client, run, layer, number)
    assert (answer.status_code, answer.mimetype) == (status, "text/plain")
    assert "<" not in answer.text
