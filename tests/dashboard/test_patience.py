"""An answer waits for an event that TensorBoard's reader is in the middle of."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from dashboard.providers import ask, client_of, eventually, provider_of, write_run
from lightning_geo.dashboard import patience
from support.records import make_record


def test_a_tag_without_its_value_yet_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", [make_record(0, metrics=["entropy"])])
    client = client_of(provider_of("slow", tmp_path))
    eventually(lambda: ask(client, "index").json["runs"])
    original, calls = EventAccumulator.Tensors, itertools.count()

    def tensors(self: EventAccumulator, tag: str) -> Any:
        if next(calls) < 3:
            raise KeyError(tag)  # as between `PluginMetadata` and the first value of a tag
        return original(self, tag)

    monkeypatch.setattr(EventAccumulator, "Tensors", tensors)
    answer = ask(client, "index")
    assert next(calls) > 3
    assert answer.status_code == 200
    assert [run["run"] for run in answer.json["runs"]] == ["run"]


def test_what_never_comes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSE", 0)
    write_run(tmp_path / "run", [make_record(0, metrics=["entropy"])])
    client = client_of(provider_of("slow", tmp_path))
    eventually(lambda: ask(client, "index").json["runs"])

    def tensors(self: EventAccumulator, tag: str) -> Any:
        raise KeyError(tag)

    monkeypatch.setattr(EventAccumulator, "Tensors", tensors)
    answer = ask(client, "index")
    assert (answer.status_code, answer.text) == (404, "lightning_geo/geometry/record")
