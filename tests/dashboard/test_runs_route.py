"""A row for each run: through TensorBoard's own application, with its fast server and without."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from werkzeug.datastructures import MultiDict
from werkzeug.test import Client

from dashboard.providers import ask, client_of, eventually, provider_of, write_run
from lightning_geo import load_history
from lightning_geo.dashboard.hyperparameters import session_of
from lightning_geo.dashboard.runs_route import RunRows
from lightning_geo.metrics.reductions import reduce_finite
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record
from support.registry import spec_named

HOSTILE = '<img src=x onerror="alert(1)">'
METRICS = ["entropy", "max_logit", "mine", "damaged"]
LOW = Finding(
    "low_entropy", "warning", "entropy", "encoder", (1,), ((1, 0),), 10, 0.02, (0.6, 0.9), HOSTILE, (), ()
)  # fmt: skip


def record(step: int, seed: int = 0, **more: Any) -> GeometryRecord:
    made = make_record(step, metrics=["entropy", "max_logit"], seed=seed, wall_time=time.time(), **more)
    return replace(made, looked_for=["low_entropy"])


def log(directory: Path, scalars: dict[str, dict[int, float]], hyperparameters: dict[str, Any]) -> None:
    writer = SummaryWriter(str(directory))
    for tag, values in scalars.items():
        for step, value in values.items():
            writer.add_scalar(tag, value, step)
    if hyperparameters:
        _, session, _ = hparams(hyperparameters, {})
        writer.file_writer.add_summary(session)
    writer.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    sick = [record(0), record(10), record(20)]
    write_run(directory / "__proto__", [*sick[:1], *(replace(r, findings=[LOW]) for r in sick[1:])])
    log(directory / "__proto__", {"train/loss": {0: 2.0, 20: 0.5}, "val/acc": {20: math.nan}},
        {"lr": 0.125, "seed": 3, "name": HOSTILE, "bias": True})  # fmt: skip
    own = record(5)
    own.stacks["encoder"] |= {"mine": np.array([[1.0, np.nan], [4.0, 2.0]], np.float32)}
    own.specs = {"mine": spec_named("mine", summary="max")}
    write_run(directory / HOSTILE, [own])
    write_run(directory / "two", [record(s, stacks=("decoder", "encoder")) for s in (0, 5)])
    resumed = directory / "resumed"
    write_run(resumed, [record(s, seed=1) for s in (0, 10, 20, 30)])
    log(resumed, {"loss": {10: 4.0, 30: 8.0}}, {})
    write_run(resumed, [], resumed_at=15)  # nothing since
    again = directory / "again"
    write_run(again, [record(s, seed=1) for s in (0, 10)])
    write_run(again, (record(s, seed=2) for s in (0, 20)), resumed_at=0)  # measured when it is resumed
    return directory


def rows_of(client: Client, **query: Any) -> dict[str, Any]:
    answer = ask(client, "runs", metric=METRICS, monitor="geometry", stack="encoder", **query)
    assert answer.status_code == 200, answer.text
    return answer.json or {}


@pytest.fixture(scope="module", params=["fast", "slow"])
def client(request: pytest.FixtureRequest, runs: Path) -> Client:
    client = client_of(provider_of(request.param, runs))

    def ready() -> bool:
        rows = {row["run"]: row for row in rows_of(client)["rows"]}
        ends = {run: [value[3] for value in row["values"]][:1] for run, row in rows.items()}
        known = {"__proto__": [20], HOSTILE: [5], "two": [5], "resumed": [10], "again": [20]}
        return ends == known and all(rows[run]["loss"] for run in ("__proto__", "resumed"))

    eventually(ready)
    eventually(lambda: not rows_of(client)["pending"])
    return client


def summaries(history: Any, at: int, stack: str = "encoder") -> Iterable[float]:
    arrays = history.stacks[stack]
    yield float(reduce_finite(arrays["entropy"][at]))
    yield float(reduce_finite(arrays["max_logit"][at], "max"))


def test_a_row_has_the_ends_of_its_metrics_in_force(client: Client, runs: Path) -> None:
    sent = rows_of(client)
    rows = {row["run"]: row for row in sent["rows"]}
    assert list(rows) == [HOSTILE, "__proto__", "again", "resumed", "two"]
    for run, row in rows.items():
        history = load_history(runs / run)
        for at, place in ((0, 2), (-1, 4)):
            found = [value[place] for value in row["values"][:2]]
            np.testing.assert_allclose(found, list(summaries(history, at)), rtol=1e-5)
            assert {value[place - 1] for value in row["values"]} == {int(history.steps[at])}
    assert [value[0] for value in rows[HOSTILE]["values"]] == ["entropy", "max_logit", "mine"]
    assert rows[HOSTILE]["values"][2][2:] == [4.0, 5, 4.0]  # the largest, as its run says
    assert rows_of(client, stamp=sent["stamp"]) == {"unchanged": True}


def test_a_row_has_verdict_outcome_and_hyperparameters(client: Client) -> None:
    rows = {row["run"]: row for row in rows_of(client)["rows"]}
    sick = rows["__proto__"]
    assert (sick["loss"], sick["score"]) == (["train/loss", 20, 0.5], ["val/acc", 20, None])
    assert sick["hyperparameters"] == [["bias", 1.0], ["lr", 0.125], ["name", HOSTILE], ["seed", 3.0]]
    assert sick["verdict"]["level"] == "warning"
    (finding,) = sick["verdict"]["findings"]
    assert finding == {
        "rule": "low_entropy", "severity": "warning", "layers": [1], "since_step": 10, "until_step": None
    }  # fmt: skip
    assert rows["resumed"]["loss"] == ["loss", 10, 4.0]  # the step 30 is void
    assert (rows["two"]["loss"], rows["two"]["hyperparameters"]) == (None, [])
    assert rows["two"]["verdict"]["level"] == "well"
    assert rows_of(client, loss="-")["rows"][1]["loss"] is None


def test_a_run_without_the_stack_has_a_row_without_numbers(client: Client) -> None:
    answer = ask(client, "runs", metric="entropy", stack="gone").json or {}
    rows = {row["run"]: row["values"] for row in answer["rows"]}
    assert rows["two"] == []  # of two stacks none is the only one
    assert [value[0] for value in rows["again"]] == ["entropy"]
    assert ask(client, "runs", metric=["entropy"] * 65).status_code == 400


def test_a_session_belongs_to_the_run_that_it_is_of() -> None:
    assert session_of("a/b", ["a", "a/b", "a/bc"]) == "a/b"
    assert session_of("a/b/c", ["a", "a/b", "b"]) == "a/b"
    assert session_of("ab", ["a"]) is None
    assert session_of("a", ["a/1"]) == "a/1"


class Datum:
    def __init__(self, step: int, values: Any, wall_time: float = 1.0) -> None:
        self.step, self.numpy, self.wall_time = step, np.asarray(values), wall_time


class Listed:
    plugin_content = b"\xff\xff damaged"

    def __init__(self, data: list[Datum]) -> None:
        self.max_step, self.max_wall_time = data[-1].step, data[-1].wall_time


class Provider:
    """Holds series by run and tag, counts what is read, and lets time pass."""

    def __init__(self, data: dict[str, dict[str, list[Datum]]]) -> None:
        self.data, self.whole = data, 0

    def list_tensors(self, ctx: Any, *, plugin_name: str, **_: Any) -> dict[str, Any]:
        if plugin_name == "hparams":
            return {"a": {"_hparams_/session_start_info": Listed([Datum(0, 0)])}}
        return {run: {tag: Listed(data) for tag, data in tags.items()} for run, tags in self.data.items()}

    def list_scalars(self, ctx: Any, **_: Any) -> dict[str, Any]:
        return {}

    def read_tensors(self, ctx: Any, *, run_tag_filter: Any, downsample: int, **_: Any) -> dict[str, Any]:
        self.whole += downsample > 1
        return {
            run: {tag: data[-downsample:] for tag, data in tags.items() if tag in run_tag_filter.tags}
            for run, tags in self.data.items()
            if run in run_tag_filter.runs
        }


TAG = "lightning_geo/geometry/encoder/entropy"


def read(rows: RunRows) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(rows.read(None, "", MultiDict([("metric", "entropy")])))
    return answer


def no_findings(*_: Any) -> str:
    raise LookupError


def no_specs(*_: Any) -> dict[str, Any]:
    return {}


def test_damaged_data_is_left_out_and_said() -> None:
    data = {"a": {TAG: [Datum(0, ["text"]), Datum(5, [[1.0, 3.0]])]}, "b": {TAG: [Datum(0, [[np.nan]])]}}
    a, b = read(RunRows(Provider(data), no_findings, no_specs))["rows"]
    assert (a["values"], a["damaged"]) == ([["entropy", 0, None, 5, 2.0]], ["entropy"])
    assert (b["values"], b["damaged"]) == ([["entropy", 0, None, 0, None]], [])
    assert a["verdict"]["level"] == "unknown"
    assert a["hyperparameters"] == []


def test_what_takes_long_is_pending_and_comes_with_later_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0, 100, 0.1))  # each look at it takes a tenth of a second
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    provider = Provider({run: {TAG: [Datum(0, [1.0]), Datum(5, [2.0])]} for run in "abcd"})
    rows = RunRows(provider, no_findings, no_specs)
    first = read(rows)
    assert first["pending"] == 4
    assert [row["values"][0][1:] for row in first["rows"]] == [[None, None, 5, 2.0]] * 4  # the last at once
    answers = [read(rows) for _ in range(8)]
    assert answers[-1]["pending"] == 0
    assert [row["values"][0][1:] for row in answers[-1]["rows"]] == [[0, 1.0, 5, 2.0]] * 4
    assert provider.whole == 4


def test_only_what_went_on_is_read_again_and_a_new_beginning_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    provider = Provider({run: {TAG: [Datum(0, [1.0]), Datum(5, [2.0])]} for run in "ab"})
    rows = RunRows(provider, no_findings, no_specs)
    assert read(rows)["pending"] == 0
    assert provider.whole == 2
    provider.data["a"][TAG] = [Datum(0, [7.0], 2.0), Datum(10, [8.0], 3.0)]  # trained anew in its directory
    assert read(rows)["rows"][0]["values"][0] == ["entropy", 0, 1.0, 10, 8.0]
    now[0] = 61.0
    assert read(rows)["rows"][0]["values"][0] == ["entropy", 0, 7.0, 10, 8.0]
    assert provider.whole == 3


def test_series_of_a_run_are_read_together_where_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {TAG.replace("entropy", name): [Datum(0, [1.0, 2.0]), Datum(5, [2.0, 4.0])] for name in METRICS}
    for largest, requests in ((2**20, 2), (0, 4), (64, 1 + 2)):  # 32 bytes each
        monkeypatch.setattr("lightning_geo.dashboard.run_ends._LARGEST", largest)
        provider = Provider({"a": tags})
        asked = MultiDict([("metric", name) for name in METRICS])
        row = json.loads(RunRows(provider, no_findings, no_specs).read(None, "", asked))["rows"][0]
        assert [value[1:] for value in row["values"][:2]] == [[0, 1.5, 5, 3.0], [0, 2.0, 5, 4.0]]
        assert provider.whole == requests
