"""``lightning-geo wandb-view``, with the objects that it would send and the keys of a real offline run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from lightning_geo.cli.main import main
from lightning_geo.cli.wandb_view import workspace
from lightning_geo.loggers import open_sinks
from lightning_geo.loggers.pictures import PictureSchedule
from lightning_geo.metrics.key_metrics import key_metrics
from lightning_geo.metrics.selection import select
from support.records import make_record
from support.wandb_file import sent

ws = pytest.importorskip("wandb_workspaces.workspaces", reason="pip install 'lightning-geo[workspaces]'")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    settings = {"SILENT": "true", "MODE": "offline", "CONFIG_DIR": str(tmp_path / "config")}
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    wandb.finish()


def spec_of(view: Any) -> dict[str, Any]:
    """What W&B would get."""
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))  # type: ignore[no-any-return]


def panels_of(view: Any) -> dict[str, list[dict[str, Any]]]:
    sections = spec_of(view)["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def keys_of_a_run(folder: Path, stacks: tuple[str, ...]) -> set[str]:
    logger = WandbLogger(project="test", save_dir=folder, offline=True)
    sinks = open_sinks([logger], level="layer", schedule=PictureSchedule(50), config={"metrics": select()})
    logger.log_metrics({"train/loss": 1.0, "val_loss": 2.0, "lr-AdamW": 0.1, "closs": 1.0}, step=0)
    for step in (0, 50):
        for sink in sinks:
            sink.write(make_record(step, layers=3, heads=2, stacks=stacks, matrices={}), final=step == 50)
    for sink in sinks:
        sink.close()
    directory = Path(logger.experiment.dir)
    logger.experiment.finish()
    rows = (r.history.item for r in sent(directory.parent) if r.WhichOneof("record_type") == "history")
    return {item.nested_key[0] if item.nested_key else item.key for row in rows for item in row}


@pytest.mark.parametrize("stacks", [("encoder",), ("encoder", "decoder.cross")])
def test_every_panel_shows_keys_that_a_run_has(tmp_path: Path, stacks: tuple[str, ...]) -> None:
    keys = keys_of_a_run(tmp_path, stacks)
    names = key_metrics(select())[: 15 // len(stacks)]
    sections = panels_of(workspace("me", "mine", layers=True))
    shown = {
        panel["config"]["chartTitle"]: {key for key in keys if re.match(panel["config"]["metricRegex"], key)}
        for section, panels in sections.items()
        for panel in panels
        if panel["viewType"] == "Run History Line Plot" and section != "Geometry: all layers"
    }
    assert shown["Loss"] == {"train/loss", "val_loss"}
    assert shown["Learning rate"] == {"lr-AdamW"}
    several = len(stacks) > 1
    for name in names:
        [found] = [found for title, found in shown.items() if title.endswith(f"({name})") and found][:1]
        expected = {
            key
            for stack in stacks
            for prefix in [f"{stack}/{name}" if several else name]
            for key in (
                f"geometry/{prefix}",
                f"geometry_layers/{prefix}/min",
                f"geometry_layers/{prefix}/max",
            )
        }
        extra = {
            f"geometry_layers/{stack}/{name}/mean" if several else f"geometry_layers/{name}/mean"
            for stack in stacks
        }
        assert found - extra == expected
    media = {
        key
        for panel in sections["Geometry: pictures, report and heads"]
        for key in panel["config"].get("mediaKeys", [])
    }
    assert media == {"geometry/layer_by_step", "geometry/layer_by_head", "geometry/report"} <= keys
    assert "geometry/heads" in keys
    assert "geometry/heads" in json.dumps(sections["Geometry: pictures, report and heads"])
    layers = {key for key in keys if re.search(r"/layer_\d+$", key)}
    charted = [panel["config"]["metricRegex"] for panel in sections["Geometry: all layers"]]
    assert layers == {key for key in layers if any(re.match(regex, key) for regex in charted)}
    assert "Geometry: all layers" not in panels_of(workspace("me", "mine"))


def test_the_command_saves_it_and_prints_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[ws.Workspace] = []
    monkeypatch.setattr(ws.Workspace, "save", lambda self: saved.append(self))
    monkeypatch.setattr(ws.Workspace, "url", property(lambda self: f"https://wandb/{self.project}"))
    assert main(["wandb-view", "me/mine", "--monitor", "probe"]) == 0
    [view] = saved
    assert (view.entity, view.project, view.name) == ("me", "mine", "Geometry")
    assert "^(probe/" in json.dumps(spec_of(view))
    assert capsys.readouterr().out == "Geometry: https://wandb/mine\n"


@pytest.mark.parametrize("project", ["mine", "me/", "/mine", "a/b/c"])
def test_a_wrong_name_is_an_error(project: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wandb-view", project]) == 2
    assert "Expected ENTITY/PROJECT" in capsys.readouterr().err


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(view: ws.Workspace) -> None:
        raise ValueError("Project `me/mine` not found.")

    monkeypatch.setattr(ws.Workspace, "save", refuse)
    assert main(["wandb-view", "me/mine"]) == 2
    assert (
        "W&B did not take the workspace: ValueError: Project `me/mine` not found." in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["wandb-view", "me/mine"]) == 2
    assert "pip install 'lightning-geo[workspaces]'" in capsys.readouterr().err
