"""Alerts of a real run: told once in every place, carried over a resume, acted upon, and never in the way."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_geo import Alerts, GeometryMonitor, GeometryRecord, Level, Rule, load_history
from lightning_geo.analysis.findings.diagnosis import recorded_findings
from lightning_geo.monitor.alerting import Alerting
from lightning_geo.monitor.lightning_host import LightningHost
from lightning_geo.storage.finding import Finding
from lightning_geo.utils.warn_once import WarnOnce
from support.lit import Classifier, fit, loader
from support.wandb_file import sent

#: Holds in every sample from the second on, when two have shown it.
SEEN = Rule("seen_it", ("entropy",), Level(at_least=0.0), "{where} have entropy.", next=("Go on.",))


def monitor(**alerts: Any) -> GeometryMonitor:
    return GeometryMonitor(1, metrics=["entropy"], alerts=Alerts(**{"rules": [SEEN], **alerts}))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "pytorch_lightning.callbacks.geometry_monitor")
    return caplog


def test_the_lines_of_two_monitors_say_whose_they_are(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    other = GeometryMonitor(1, metrics=["entropy"], alerts=Alerts(rules=[SEEN]), name="batch")
    fit(tmp_path, Classifier(), monitor(), other, steps=2)
    ours = [text for record in lines.records if "GeometryMonitor" in (text := record.getMessage())]
    for what in ("found Bert", "samples are taken", "warning since step 0", "largest changes"):
        assert sorted(text.partition(": ")[0] for text in ours if what in text) == [
            "GeometryMonitor",
            "GeometryMonitor (batch)",
        ], ours


def test_a_finding_is_told_once_in_every_place(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    told: list[Finding] = []
    board = TensorBoardLogger(tmp_path / "board", "", version="")
    weights = WandbLogger(save_dir=tmp_path, offline=True, project="p")
    fit(tmp_path, Classifier(), monitor(notify=told.append), logger=[board, weights], steps=5)
    wandb.finish()
    history = load_history(tmp_path / "board")
    assert recorded_findings(history) == told
    [finding] = told
    assert (finding.rule, finding.since_step, finding.until_step) == ("seen_it", 0, None)
    assert [len(history.record(i).findings) for i in range(6)] == [0, 1, 0, 0, 0, 0]
    looked_for = history.record(-1).looked_for
    assert {"seen_it", "not_finite"} <= set(looked_for)
    assert "rank_collapse" not in looked_for  # no metric that it needs
    messages = [record.getMessage() for record in lines.records]
    [line] = [text for text in messages if "warning since step" in text]
    expected = (
        "GeometryMonitor: warning since step 0: 8 of 8 heads in layers 0 and 1 have entropy. Next: Go on."
    )
    assert line == expected
    assert any(text.startswith("GeometryMonitor: 1 thing to look at: 8 of 8 heads") for text in messages)
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"tensors": 0})
    events.Reload()
    [text] = events.Tensors("geometry/findings")
    assert text.step == 1
    assert b"8 of 8 heads in layers 0 and 1 have entropy." in text.tensor_proto.string_val[0]
    assert "geometry/findings" in events.PluginTagToContent("text")
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    [alert] = [record.alert for record in sent(run) if record.WhichOneof("record_type") == "alert"]
    assert (alert.title, alert.level) == (f"Seen it ({finding.stack})", "WARN")
    assert "Next: Go on." in alert.text


def test_a_finding_that_grows_slowly_is_told_when_it_has_doubled() -> None:
    told: list[int] = []
    findings = Alerting(Alerts(notify=lambda f: told.append(len(f.heads))), WarnOnce(strict=True))

    def take(*found: Finding) -> None:
        findings.report(LightningHost(pl.Trainer), GeometryRecord({}, findings=list(found)))

    first = Finding("r", "warning", "m", "s", (0,), ((0, 0), (0, 1)), 5, 0.0, (0.0, 0.0), "m")
    for size in (2, 3, 4, 5, 7, 8):
        take(replace(first, heads=tuple((0, head) for head in range(size))))
    take(replace(first, severity="critical"))
    take(first.closed(9))
    take(first)  # it is back
    assert told == [2, 4, 8, 2, 2]


def test_nothing_is_looked_for_without_alerts(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, Classifier(), GeometryMonitor(1, metrics=["entropy"], alerts=False), steps=3)
    history = load_history(tmp_path / "lightning_geo" / "version_0")
    assert not recorded_findings(history)
    assert not history.record(-1).looked_for
    assert lines.records[-4].getMessage().startswith("GeometryMonitor: 4 samples")
    assert "no verdict" in lines.records[-3].getMessage()


def test_what_notify_raises_is_a_warning(tmp_path: Path) -> None:
    def broken(finding: Finding) -> None:
        raise OSError("the pager is off")

    with pytest.warns(UserWarning, match="`notify` of the alerts failed.*the pager is off"):
        trainer = fit(tmp_path, Classifier(), monitor(notify=broken), steps=4)
    assert trainer.global_step == 4


def test_stop_ends_training_cleanly_and_a_resumed_run_hears_nothing_twice(tmp_path: Path) -> None:
    told: list[Finding] = []
    checkpoints = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    options: dict[str, Any] = {"steps": 12, "enable_checkpointing": True}
    trainer = fit(
        tmp_path, Classifier(), monitor(notify=told.append, stop="warning", checkpoint="note"), checkpoints,
        **options,
    )  # fmt: skip
    assert trainer.global_step == 2  # found in the sample before step 1, which still ends
    assert trainer.state.finished
    assert len(told) == 1
    saved = tmp_path / "kept" / "geometry-step=2.ckpt"
    torch.load(saved, weights_only=True)
    assert (tmp_path / "kept" / "step=2.ckpt").exists()
    # from the checkpoint of the finding itself: it goes on, and neither tells nor stops again
    resumed = pl.Trainer(
        max_steps=6, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[monitor(notify=told.append, stop="warning")],
    )  # fmt: skip
    resumed.fit(Classifier(), loader(), ckpt_path=saved)
    assert resumed.global_step == 6
    assert len(told) == 1
    history = load_history(tmp_path / "lightning_geo" / "version_0")
    assert [f.since_step for f in recorded_findings(history)] == [0]
    assert history.steps.tolist() == list(range(7))


def test_layers_that_are_not_finite_are_a_critical_finding(tmp_path: Path) -> None:
    class Overflows(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                torch.nn.init.constant_(
                    self.model.bert.encoder.layer[1].attention.self.value.weight, torch.inf
                )

    told: list[Finding] = []
    callback = GeometryMonitor(1, alerts=Alerts(notify=told.append))
    with pytest.warns(UserWarning, match="not finite"):
        fit(tmp_path, Overflows(), callback, steps=4)
    critical = [finding for finding in told if finding.rule == "not_finite"]
    assert [(f.severity, f.since_step) for f in critical] == [
        ("critical", 3)
    ]  # set behind the sample of step 2
    assert 1 in critical[0].layers


@pytest.mark.parametrize(
    ("alerts", "error", "message"),
    [
        (3, TypeError, "Expected `alerts` to be True, False"),
        ("nowhere.yaml", ValueError, "Cannot read 'nowhere.yaml'"),
        ({"stop": "bad"}, ValueError, "Expected `stop` to be one of"),
        ({"notify": 3}, ValueError, "Expected `notify` to be callable"),
        ({"silence": ["depature"]}, ValueError, "Did you mean 'departure'"),
        ({"file": "a.yaml", "silence": ["departure"]}, ValueError, "but got both"),
    ],
)
def test_bad_alerts_are_refused_at_once(alerts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GeometryMonitor(alerts=Alerts(**alerts) if isinstance(alerts, dict) else alerts)
