"""What the page of a W&B run shows beside its charts: summary, configuration, report, table of heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from lightning_geo.loggers import open_sinks
from lightning_geo.loggers.wandb import WandbSink
from lightning_geo.metrics.selection import select
from lightning_geo.storage.finding import Finding
from support.records import make_record
from support.wandb_file import rows_of, sent
from support.wandb_runs import written

pytestmark = pytest.mark.usefixtures("quiet_wandb")


def summary_of(records: list[Any]) -> dict[str, Any]:
    """What the table of runs shows at the end; nested values as ``key\\0part``."""
    updates = (u for r in records if r.WhichOneof("record_type") == "summary" for u in r.summary.update)
    return {"\0".join(u.nested_key) or u.key: json.loads(u.value_json) for u in updates}


def test_the_table_of_runs_has_last_least_most_and_change(tmp_path: Path) -> None:
    steps, names = (0, 50, 100), ["entropy", "drift.output", "max_logit"]
    everything = written(tmp_path, steps, metrics=names)
    summary = summary_of(everything)
    for name in names:
        values = [make_record(step, metrics=names).summaries()[name] for step in steps]
        expected = {"last": values[-1], "min": min(values), "max": max(values)}
        assert summary[f"geometry/{name}"] == pytest.approx(expected)
        assert summary[f"geometry_change/{name}"] == pytest.approx(values[-1] - values[0])


def test_a_resumed_runs_change_is_since_the_runs_start(tmp_path: Path) -> None:
    written(tmp_path, (0, 50, 100), metrics=["entropy"])
    summary = summary_of(written(tmp_path, (50, 150), resumed_at=50, metrics=["entropy"]))
    first, last = (make_record(step, metrics=["entropy"]).summaries()["entropy"] for step in (0, 150))
    assert summary["geometry_change/entropy"] == pytest.approx(last - first)


def test_the_report_is_attached_at_the_end(tmp_path: Path) -> None:
    everything = written(tmp_path, (0, 50), metrics=["entropy", "drift.output"])
    *_, row = rows_of(everything)
    assert row["trainer/global_step"] == 50
    assert row["geometry/report\0_type"] == "html-file"
    [file] = tmp_path.rglob(Path(row["geometry/report\0path"]).name)
    page = file.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "wandb" not in page  # W&B adds a stylesheet from its server unless told not to
    assert "2, steps 0 to 50" in page
    assert "Attention geometry: " in page


def test_a_record_beside_tensorboard_has_a_report_too(tmp_path: Path) -> None:
    wandb_logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    wandb_sink, board = open_sinks([wandb_logger, TensorBoardLogger(tmp_path / "tb")])
    for step in (0, 50):
        board.write(make_record(step, metrics=["entropy"]))
        wandb_sink.write(make_record(step, metrics=["entropy"]))
    directory = Path(wandb_logger.experiment.dir)
    wandb_sink.close()
    wandb_logger.experiment.finish()
    assert any("geometry/report\0path" in row for row in rows_of(sent(directory.parent)))


def test_without_a_sample_or_a_readable_record_there_is_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    sink, record = open_sinks([logger])
    sink.close()  # a run that ended before its first sample
    for each in (sink, record):
        each.write(make_record(metrics=["entropy"]))
    monkeypatch.setattr("lightning_geo.loggers.wandb._READ", 10)
    with pytest.warns(UserWarning, match="Write it later with: lightning-geo report"):
        sink.close()
    assert isinstance(sink, WandbSink)
    sink.record_at = "s3://bucket/run"
    sink.close()
    directory = Path(logger.experiment.dir)
    logger.experiment.finish()
    assert not any("report" in key for row in rows_of(sent(directory.parent)) for key in row)


def config_of(records: list[Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for record in records:
        kind = record.WhichOneof("record_type")
        parts = {"config": record.config, "run": record.run.config}
        for update in parts[kind].update if kind in parts else ():
            config["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
    return config


def test_the_runs_config_says_what_is_measured_and_keeps_the_users_own(tmp_path: Path) -> None:
    run = wandb.init(
        project="test", dir=tmp_path, mode="offline", config={"lr": 0.1, "geometry": {"mine": 1}}
    )
    config = {"every_n_steps": 50, "metrics": ["entropy"], "versions": {"torch": "2"}}
    sink, _ = open_sinks([WandbLogger(experiment=run)], config=config)
    record = make_record(metrics=["entropy"], layers=3, heads=4)
    sink.write(record)
    sink.write(make_record(50, metrics=["entropy"], layers=3, heads=4))
    directory = Path(run.dir).parent
    run.finish()
    found = config_of(sent(directory))
    assert found["lr"] == 0.1
    geometry = found["geometry"]
    assert {key: geometry[key] for key in ("mine", *config)} == {"mine": 1, **config}
    assert geometry["layout"] == {"encoder": {"layers": 3, "heads": 4}}
    assert geometry["probe_fingerprint"] == record.probe_fingerprint


def test_a_setting_of_the_users_with_the_monitors_name_stays(tmp_path: Path) -> None:
    run = wandb.init(project="test", dir=tmp_path, mode="offline", config={"geometry": "flat"})
    sink, _ = open_sinks([WandbLogger(experiment=run)], config={"metrics": ["entropy"], "rank": 8})
    sink.write(make_record(metrics=["entropy"]))
    directory = Path(run.dir).parent
    run.finish()
    found = config_of(sent(directory))
    assert (found["geometry"], found["geometry_monitor"]["rank"]) == ("flat", 8)


def test_a_config_that_cannot_be_written_costs_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = wandb.init(project="test", dir=tmp_path, mode="offline")
    sink, _ = open_sinks([WandbLogger(experiment=run)], config={"metrics": ["entropy"]})
    monkeypatch.setattr("lightning_geo.loggers.wandb._facts", {}.__getitem__)
    with pytest.raises(KeyError):
        sink.write(make_record(0, metrics=["entropy"]))
    sink.write(make_record(50, metrics=["entropy"]))  # the others go on
    directory = Path(run.dir).parent
    run.finish()
    assert [row["trainer/global_step"] for row in rows_of(sent(directory)) if "geometry/entropy" in row] == [
        0,
        50,
    ]


def table_of(folder: Path, records: list[Any]) -> dict[str, Any]:
    *_, row = rows_of(records)
    assert row["geometry/heads\0_type"] == "table-file"
    return json.loads((folder / row["geometry/heads\0path"]).read_text())


def test_a_table_of_heads_at_the_end(tmp_path: Path) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    sink, record_file = open_sinks([logger], config={"metrics": select()})
    last = make_record(50, layers=3, heads=4)
    last.stacks["encoder"]["entropy"][1, 2] = np.nan
    of_head = Finding("r", "note", "entropy", "encoder", (1,), ((1, 3),), 5, 0.0, (0.0, 0.0), "m")
    of_layer = Finding("s", "note", "kurtosis", "encoder", (2,), (), 5, 0.0, (0.0, 0.0), "m")
    ended = Finding("t", "note", "kurtosis", "encoder", (2,), (), 5, 0.0, (0.0, 0.0), "m")
    first = make_record(0, layers=3, heads=4)
    first.findings, last.findings = [of_head, of_layer, ended], [ended.closed(50)]
    for record in (first, last):
        for each in (sink, record_file):
            each.write(record)
    sink.close()
    directory = Path(logger.experiment.dir)
    logger.experiment.finish()
    table = table_of(directory, sent(directory.parent))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["layer"], row["head"]) for row in rows] == [(i, j) for i in range(3) for j in range(4)]
    for row in rows:
        for name in ("normalized_entropy", "drift.output", "redundancy"):
            assert row[name] == pytest.approx(float(last[name][row["layer"], row["head"]]))
        expected = "s" if row["layer"] == 2 else "r" if (row["layer"], row["head"]) == (1, 3) else ""
        assert row["findings"] == expected
    assert rows[6]["entropy"] is None
    assert "kurtosis" not in rows[0]  # a metric of layers
