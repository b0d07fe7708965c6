"""The routes of the tab through TensorBoard's own application, with its fast data server and without."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from werkzeug.test import Client

from dashboard.providers import PREFIX, ask, client_of, eventually, provider_of, write_run
from lightning_geo import load_history
from lightning_geo.dashboard.metadata import PLUGIN
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record
from support.registry import spec_named

HOSTILE = '<img src=x onerror="alert(1)">'
KINDS = ["fast", "slow"]


class Values(NamedTuple):
    """What the route ``data`` sent."""

    steps: list[int]
    first: int
    total: int
    stamp: float
    values: NDArray[np.float32]


def unpack(body: bytes) -> Values:
    """Read it as the page does."""
    length = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + length])
    values = np.frombuffer(body, "<f4", offset=4 + length).reshape(header["shape"])
    return Values(header["steps"], header["first"], header["total"], header["stamp"], values)


def now(record: GeometryRecord) -> GeometryRecord:
    return replace(record, wall_time=time.time())


def ragged(step: int) -> GeometryRecord:
    """Layers of 2 and 4 heads, an absent value, metrics of other axes, and an unknown name."""
    entropy = np.array([[step, 1, np.nan, np.nan], [np.nan, 2, 3, np.inf]], np.float32)
    stack = {"entropy": entropy, "hidden_norm": np.array([1, step], np.float32),
             "drift.query": np.float32(step),
             "of_a_newer_version": np.full((2, 3, 2), step, np.float16)}  # fmt: skip
    return now(
        GeometryRecord({"vision": {k: np.asarray(v) for k, v in stack.items()}}, {"class": "Swin"}, step=step)
    )


def own(step: int, unit: str) -> GeometryRecord:
    """Metrics that are not built in: one described in markup, one whose description is damaged."""
    record = now(make_record(step, metrics=["entropy"]))
    record.stacks["encoder"] |= {"mine": np.ones((2, 3), np.float32), "damaged": np.ones((2, 3), np.float32)}
    spec = spec_named("mine", unit=unit, meaning=HOSTILE, range=(0.0, 2.0), headline=("mine",))
    record.specs = {"mine": spec, "damaged": replace(spec, name="damaged", headline=("other",))}
    return record


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with what users and their disks come up with."""
    directory = tmp_path_factory.mktemp("runs")
    steps = range(300)  # more than TensorBoard keeps by itself
    write_run(
        directory / "version_10", [now(make_record(s, metrics=["entropy", "cone.output"])) for s in steps]
    )
    write_run(directory / "version_2", [ragged(s) for s in (0, 10, 20)])
    write_run(directory / HOSTILE / "__proto__", [now(make_record(s, stacks=("b", "a"))) for s in (0, 5)])
    for name, unit in (("own", "bananas"), ("own_2", "apples")):
        write_run(directory / name, [own(s, unit) for s in (0, 10)])
    resumed = directory / "resumed"
    write_run(resumed, [now(make_record(s, metrics=["entropy"], seed=1)) for s in (0, 10, 20, 25, 30)])
    later = (
        now(make_record(s, metrics=["entropy"], seed=2)) for s in (40, 50)
    )  # measured when it is resumed
    write_run(resumed, later, resumed_at=22)
    (directory / "empty").mkdir()
    (directory / "empty" / "events.out.tfevents.1.host").touch()
    (directory / "foreign").mkdir()
    (directory / "foreign" / "events.out.tfevents.1.host").write_bytes(b"not an event file " * 100)
    shutil.copytree(directory / "version_2", directory / "cut")
    (cut,) = (directory / "cut").iterdir()
    cut.write_bytes(cut.read_bytes()[:-20])
    return directory


@pytest.fixture(scope="module", params=KINDS)
def client(request: pytest.FixtureRequest, runs: Path) -> Client:
    client = client_of(provider_of(request.param, runs))
    names = {"version_10", "version_2", f"{HOSTILE}/__proto__", "resumed", "cut", "own", "own_2"}
    eventually(lambda: names <= {run["run"] for run in ask(client, "index").json["runs"]})
    eventually(lambda: len(data(client, "version_10", "encoder", "entropy").steps) == 300)
    eventually(lambda: data(client, "resumed", "encoder", "entropy").steps[-1] == 50)
    return client


def data(client: Client, run: str, stack: str, metric: str, **query: Any) -> Values:
    answer = ask(client, "data", run=run, monitor="geometry", stack=stack, metric=metric, **query)
    assert answer.status_code == 200, answer.text
    return unpack(answer.data)


def test_the_index_lists_what_there_is_in_a_fixed_order(client: Client) -> None:
    index = ask(client, "index").json
    runs = {run["run"]: run["monitors"] for run in index["runs"]}
    assert list(runs) == [f"{HOSTILE}/__proto__", "cut", "own", "own_2", "resumed", "version_2", "version_10"]
    (monitor,) = runs["version_10"]
    assert monitor["monitor"] == "geometry"
    assert monitor["last"][0] == 299
    assert monitor["stacks"] == [{"stack": "encoder", "metrics": ["entropy", "cone.output"]}]
    assert [stack["stack"] for stack in runs[f"{HOSTILE}/__proto__"][0]["stacks"]] == ["a", "b"]
    told = {metric["name"]: metric for metric in index["metrics"]}
    assert told["entropy"]["formula"] == "−Σ p ln p"
    assert told["of_a_newer_version"]["family"] == "other"


def test_metrics_that_are_not_built_in_are_described_as_their_run_does(client: Client) -> None:
    told = {metric["name"]: metric for metric in ask(client, "index").json["metrics"]}
    mine = told["mine"]
    assert (mine["unit"], mine["range"], mine["family"], mine["headline"]) == (
        "bananas",
        [0, 2],
        "mine",
        True,
    )
    # text, which the page puts into text nodes; the second run's numbers are in another unit
    assert mine["meaning"] == f"{HOSTILE} Other runs mean other numbers by this name: unit."
    assert told["damaged"]["family"] == "other"
    np.testing.assert_array_equal(data(client, "own", "encoder", "damaged").values, np.ones((2, 2, 3)))


def test_values_are_those_that_were_written(client: Client, runs: Path) -> None:
    for name, stack in (("version_10", "encoder"), (f"{HOSTILE}/__proto__", "b")):
        history = load_history(runs / name)
        found = data(client, name, stack, "entropy")
        assert found.steps == history.steps.tolist()
        assert found.total == len(history)
        np.testing.assert_array_equal(found.values, history.stacks[stack]["entropy"])


def test_absent_values_and_axes_of_every_kind_arrive(client: Client) -> None:
    for run in ("version_2", "cut"):
        found = data(client, run, "vision", "entropy")
        first = [[0, 1, np.nan, np.nan], [np.nan, 2, 3, np.inf]]
        np.testing.assert_array_equal(found.values[0], np.array(first, np.float32))
    assert data(client, "version_2", "vision", "hidden_norm").values.shape == (3, 2, 1)
    assert data(client, "version_2", "vision", "drift.query").values[:, 0, 0].tolist() == [0, 10, 20]
    assert data(client, "version_2", "vision", "of_a_newer_version").values.shape == (3, 2, 6)


def test_a_resumed_run_is_read_as_the_history_reads_it(client: Client, runs: Path) -> None:
    history = load_history(runs / "resumed")
    found = data(client, "resumed", "encoder", "entropy")
    assert found.steps == history.steps.tolist() == [0, 10, 20, 40, 50]
    np.testing.assert_array_equal(found.values, history["entropy"])


def test_fewer_samples_keep_the_ends_and_equal_distances(client: Client) -> None:
    found = data(client, "version_10", "encoder", "entropy", samples=14)
    assert found.steps == list(range(0, 300, 23))
    assert found.total == 300
    assert data(client, "version_10", "encoder", "entropy", samples=1000).steps == list(range(300))


def test_what_the_page_holds_is_not_sent_again(client: Client) -> None:
    whole = data(client, "version_10", "encoder", "entropy")
    stamp = whole.stamp
    nothing = data(client, "version_10", "encoder", "entropy", held=300, stamp=repr(stamp))
    assert (nothing.steps, nothing.first, nothing.total, nothing.stamp) == ([], 300, 300, stamp)
    for held, other in ((299, stamp), (300, stamp - 1), (400, stamp)):  # something else stands there now
        again = data(client, "version_10", "encoder", "entropy", held=held, stamp=repr(other))
        assert (again.first, again.steps) == (0, whole.steps)


def test_metadata_is_that_of_the_last_sample(client: Client) -> None:
    metadata = ask(client, "metadata", run="version_10", monitor="geometry").json
    assert metadata["step"] == 299
    assert metadata["probe_fingerprint"] == "cafe"
    assert metadata["model"]["stacks"]["encoder"]["heads"] == [3, 3]


COMPLETE = {"run": "version_10", "monitor": "geometry", "stack": "encoder", "metric": "entropy"}


@pytest.mark.parametrize(
    ("route", "query", "status", "text"),
    [
        ("data", {}, 400, "Expected the argument `monitor`"),
        (
            "data",
            COMPLETE | {"run": "../../etc/passwd"},
            404,
            "No 'lightning_geo/geometry/encoder/entropy' in run",
        ),
        ("data", COMPLETE | {"metric": "../../../etc/passwd"}, 404, "No 'lightning_geo"),
        ("data", COMPLETE | {"stack": HOSTILE}, 404, HOSTILE),
        ("data", COMPLETE | {"samples": "many"}, 400, "invalid literal"),
        ("data", COMPLETE | {"samples": "1"}, 400, "`samples` to be at least 2 but got 1"),
        ("metadata", {"run": "version_10", "monitor": "other"}, 404, "No metadata of monitor 'other'"),
        ("metadata", {"run": "nowhere", "monitor": "geometry"}, 404, "run 'nowhere'"),
    ],
)
def test_what_is_not_there_is_said_in_plain_text(
    client: Client, route: str, query: dict[str, str], status: int, text: str
) -> None:
    answer = ask(client, route, **query)
    assert answer.status_code == status
    assert answer.mimetype == "text/plain"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert text in answer.text


def test_modules_and_style_sheet_are_served_with_their_types(client: Client) -> None:
    sheets = [("dashboard.css", "text/css"), ("runs.css", "text/css")]
    for name, kind in [("index.js", "text/javascript"), *sheets]:
        answer = ask(client, f"static/{name}")
        assert answer.status_code == 200
        assert answer.mimetype == kind


@pytest.mark.parametrize(
    "name",
    ["../plugin.py", "%2e%2e/plugin.py", "..%2fplugin.py", "package.json", "", "/etc/passwd", "nothing.js"],
)
def test_no_path_leads_out_of_the_static_files(client: Client, name: str) -> None:
    assert client.get(f"{PREFIX}/static/{name}").status_code == 404


def test_the_page_of_the_tab_is_tensorboards(client: Client) -> None:
    listing = client.get("/data/plugins_listing").json
    assert listing[PLUGIN]["tab_name"] == "Geometry"
    assert listing[PLUGIN]["enabled"]
    assert listing[PLUGIN]["loading_mechanism"]["module_path"] == f"{PREFIX}/static/index.js"
    entry = client.get("/data/plugin_entry.html", query_string={"name": PLUGIN})
    assert "./static/index.js" in entry.text


@pytest.mark.parametrize("kind", KINDS)
def test_new_samples_are_seen_and_the_users_limit_is_kept(kind: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [now(make_record(s, metrics=["entropy"])) for s in range(40)])
    client = client_of(provider_of(kind, tmp_path, {PLUGIN: 20}))
    eventually(lambda: ask(client, "index").json["runs"])
    eventually(lambda: data(client, "run", "encoder", "entropy").steps[-1] == 39)
    assert len(data(client, "run", "encoder", "entropy").steps) == 20
    write_run(tmp_path / "run", [now(make_record(40, metrics=["entropy"]))])
    eventually(lambda: ask(client, "index").json["runs"][0]["monitors"][0]["last"][0] == 40)
    assert data(client, "run", "encoder", "entropy").steps[-1] == 40


@pytest.mark.parametrize("kind", KINDS)
def test_only_new_samples_are_sent_to_a_page_that_has_the_others(kind: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [now(make_record(s, metrics=["entropy"])) for s in range(3)])
    client = client_of(provider_of(kind, tmp_path))
    eventually(lambda: ask(client, "index").json["runs"])
    eventually(lambda: data(client, "run", "encoder", "entropy").total == 3)
    held = data(client, "run", "encoder", "entropy")
    write_run(tmp_path / "run", [now(make_record(3, metrics=["entropy"]))])
    eventually(lambda: data(client, "run", "encoder", "entropy").total == 4)
    more = data(client, "run", "encoder", "entropy", held=3, stamp=repr(held.stamp))
    assert (more.steps, more.first, more.values.shape) == ([3], 3, (1, 2, 3))
    write_run(tmp_path / "run", [now(make_record(2, metrics=["entropy"]))])  # replaces 2 and 3
    eventually(lambda: data(client, "run", "encoder", "entropy").total == 3)
    more = data(client, "run", "encoder", "entropy", held=4, stamp=repr(more.stamp))
    assert (more.steps, more.first) == ([0, 1, 2], 0)
