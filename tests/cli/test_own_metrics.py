"""Metrics that are not built in, read by processes that know nothing of them but what the run says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event

from lightning_geo import GeometryHistory, load_history
from lightning_geo.analysis.comparison import compare
from lightning_geo.analysis.seed_groups import compare_groups
from lightning_geo.cli.main import main
from lightning_geo.metrics.foreign import FOREIGN
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.events import metadata_tag, record_event
from lightning_geo.storage.follow import Follower
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile
from lightning_geo.storage.tfrecord import frame
from lightning_geo.utils.errors import RunError
from support.records import make_record
from support.registry import spec_named

OWN = spec_named("own", unit="bananas", range=(0.0, 2.0), headline=("own",), meaning="A rise: more fruit.")
PARTS = spec_named("parted", parts=("query", "key"), axes=("layer",), summary="max")


def record(step: int, seed: int = 0, own: MetricSpec = OWN) -> GeometryRecord:
    made = make_record(step, metrics=["entropy"], seed=seed)
    values = np.random.default_rng([step, seed]).uniform(0, 2, (2, 3)).astype(np.float32)
    made.stacks["encoder"] |= {"own": values, "parted.query": values[:, 0], "parted.key": values[:, 1]}
    made.stacks["encoder"] |= {"entropy.stderr": values / 9, "own.stderr": values / 9}
    made.specs = {"own": own, "parted": PARTS}
    return made


def write(directory: Path, *records: GeometryRecord) -> Path:
    sink = RecordFile(directory, "geometry")
    for made in records:
        sink.write(made)
    sink.close()
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert "own" not in FOREIGN
    directory = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("a", "b", "c")):
        write(directory / name, *(record(step, seed) for step in (0, 50)))
    return directory


def test_a_history_knows_what_its_metrics_are(runs: Path) -> None:
    history = load_history(runs / "a")
    assert history.specs == {"own": OWN, "parted": PARTS}
    assert history["parted"].shape == (2, 2, 2)
    assert "parted" in history
    assert history.record(0).summaries()["parted.query"] == pytest.approx(history["parted.query"][0].max())
    data = history.to_xarray()["own"]
    assert (data.attrs["units"], data.attrs["meaning"]) == ("bananas", "A rise: more fruit.")
    table = history.to_pandas()
    assert set(table[table.metric == "own"].unit) == {"bananas"}


def test_the_commands_describe_them(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = "own (bananas, 0 to 2): own = …. A rise: more fruit. Source: tests"
    a, b, c = (str(runs / name) for name in "abc")
    assert main(["show", a]) == 0
    assert described in capsys.readouterr().out
    assert main(["compare", a, b, "--metric", "own"]) == 0
    printed = capsys.readouterr().out
    assert described in printed
    assert "parted" not in printed
    assert main(["compare", a, b]) == 0
    assert "stderr (" not in capsys.readouterr().out  # an estimate's error is no metric of its own
    assert main(["compare", a, b, "--json", "--fail-above", "own=9", "--metric", "mine"]) == 0
    [compared] = json.loads(capsys.readouterr().out)["comparisons"]
    assert {row["metric"] for row in compared["differences"]} == {"own", "parted.query", "parted.key"}
    assert compared["metrics"]["own"]["range"] == [0.0, 2.0]
    assert main(["compare", "--group", a, b, "--group", a, c, "--metric", "own"]) == 0
    assert "own" in capsys.readouterr().out
    page = tmp_path / "report.html"
    assert main(["report", a, b, "-o", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    assert html.count("A rise: more fruit.") >= 2  # its card, and the table of what is not built in
    assert "bananas, 0 to 2" in html
    assert main(["compare", a, b, "--metric", "owned"]) == 2
    assert "Did you mean 'own'" in capsys.readouterr().err


def test_other_wording_is_the_same_metric_and_another_unit_is_not(runs: Path) -> None:
    a = load_history(runs / "a")

    def other(**fields: Any) -> GeometryHistory:
        return GeometryHistory([record(step, 1, replace(OWN, **fields)) for step in (0, 50)])

    worded = compare(a, other(meaning="Fruit.", range=(0.0, 9.0)))
    assert [d.spec for d in worded.differences if d.metric == "own"] == [OWN]
    apart = compare(a, other(unit="apples", formula="x"))
    assert not {"own", "own.stderr"} & {d.metric for d in apart.differences}
    assert "Not compared: own, whose unit, formula differs between A and B." in apart.notes
    with pytest.raises(RunError, match="Not compared: own, whose unit"):
        compare(a, other(unit="apples"), ["own"])
    groups = compare_groups([a, other(unit="apples")], [])
    assert "own" not in {row.metric for row in groups.rows}
    assert "Not compared: own, by which the runs mean different numbers." in groups.notes


def test_a_run_that_changed_what_a_metric_is_says_so(tmp_path: Path) -> None:
    write(tmp_path, record(0), record(10), record(20, own=replace(OWN, unit="apples")))
    with pytest.warns(UserWarning, match="'own' changed its unit at step 20: earlier samples do not compare"):
        assert load_history(tmp_path).specs["own"].unit == "apples"


def test_a_damaged_spec_costs_the_description_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b""
    for step in (0, 10):
        event = Event.FromString(record_event(record(step), "geometry").SerializeToString())
        (value,) = (v for v in event.summary.value if v.tag == metadata_tag("geometry"))
        metadata = json.loads(value.tensor.string_val[0])
        metadata["specs"]["own"]["axes"] = ["\x1b[2J"]
        metadata["specs"]["entropy"] = {"unit": "bananas"}
        value.tensor.string_val[0] = json.dumps(metadata).encode()
        content += frame(event.SerializeToString())
    (tmp_path / "events.out.tfevents.1.host").write_bytes(content)
    with pytest.warns(UserWarning, match="skipping damaged parts") as caught:
        history = load_history(tmp_path)
    [said] = [str(w.message) for w in caught]  # once, though each sample carries it
    assert said.count("the spec of 'own' is damaged, so that the metric has no description: ") == 1
    assert said.count("the spec of 'entropy' was passed over: the metric is built in") == 1
    assert history["own"].shape == (2, 2, 3)
    assert list(history.specs) == ["parted"]
    assert "own" not in history.record(0).summaries()
    news = list(Follower(tmp_path).poll())
    assert [n.text.partition(",")[0] for n in news if n.text] == [
        "the spec of 'own' is damaged", "the spec of 'entropy' was passed over: the metric is built in",
    ]  # fmt: skip
    assert main(["show", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "nats" in printed.out
    assert "\nown" not in printed.out
