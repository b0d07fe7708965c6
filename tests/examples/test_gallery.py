"""The gallery: the script that makes its pictures still runs, small, and makes those that the guide shows."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from programs.gallery_runs import KINDS
from support.forks import Forks
from support.lit import bert

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "pictures" / "gallery"


@pytest.mark.slow
@pytest.mark.browser
def test_the_script_makes_every_picture_of_a_run(tmp_path: Path, forks: Forks) -> None:
    command = [
        str(ROOT / "tests" / "programs" / "gallery.py"),
        "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "pictures"), "--steps", "4",
        "--kinds", "healthy",
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "WANDB_API_KEY": ""}
    [status], [stdout], [stderr] = forks.run(command, folder=tmp_path, environments=[environment])
    assert status == 0, stdout + stderr
    assert "GeometryMonitor: found BertForSequenceClassification" in stdout
    made = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert made == {path.name for path in PICTURES.iterdir() if path.stem.endswith("_healthy")} | {
        "tensorboard_images.png",
        "tensorboard_scalars.png",
    }


def test_what_is_planted_is_what_the_guide_says() -> None:
    plants = {}
    for kind in KINDS:
        model: Any = bert(layers=6, heads=12, width=96)
        layers, before = model.bert.encoder.layer, copy.deepcopy(model.bert.encoder.layer)
        with torch.no_grad():
            for _ in range(20):
                if (plant := KINDS[kind][0]) is not None:
                    plant(layers)
        pairs = zip(layers.named_parameters(), before.parameters(), strict=True)
        plants[kind] = {name for (name, new), old in pairs if not torch.equal(new, old)}, layers, before
    changed, layers, before = plants["collapse"]
    assert {name.partition(".attention.self.")[0] for name in changed} == {"2", "3"}
    query, old = (x[2].attention.self.query.weight.unflatten(0, (12, -1)) for x in (layers, before))
    torch.testing.assert_close(query[:6], old[:6] * 1.06**20)
    assert torch.equal(query[6:], old[6:])
    assert plants["narrowing"][0] == {"3.output.LayerNorm.bias"}
    changed, layers, before = plants["redundancy"]
    assert {name.partition(".attention.self.")[0] for name in changed} == {"4"}
    value = layers[4].attention.self.value.weight.unflatten(0, (12, -1))
    old = before[4].attention.self.value.weight.unflatten(0, (12, -1))
    torch.testing.assert_close(value[1:5], old[:1] + 0.8**20 * (old[1:5] - old[:1]))
    assert plants["healthy"][0] == set()


def test_the_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in PICTURES.iterdir()}
    assert {name: size for name, size in sizes.items() if size > 100_000} == {}
    assert sum(sizes.values()) < 1_500_000
