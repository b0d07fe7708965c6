"""The callback's docstring: its examples run, and it names every key that is logged."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.metrics.catalog import CATALOG
from support.lit import Classifier, fit

DOC = inspect.getdoc(GeometryMonitor) or ""
#: file -> its text, of the blocks that are introduced as "…, ``train.py``::"
FILES = {
    name: inspect.cleandoc("\n" + block) + "\n"
    for name, block in re.findall(r"``(\w+\.\w+)``::\n\n((?: {8}.*\n|\n)+)", DOC + "\n")
}
#: Keys of the docstring's list, such as ``geometry_<family>/<metric>/layer_03``.
KEYS = [
    key
    for line in re.findall(r"^- (``geometry.*)$", DOC, re.MULTILINE)
    for key in re.findall(r"``(geometry\S*?)``", line)
] + ["geometry_layers/max_logit/mean"]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples' files, in the working directory."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "encoder", None)  # forgotten afterwards
    monkeypatch.delitem(sys.modules, "encoder")
    return tmp_path


def run(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """Run one of the files as a program; returns its variables."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    return runpy.run_path(script, run_name="__main__")


def test_the_script(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train.py", monkeypatch)
    assert capsys.readouterr().out.strip().endswith("[ 0 10 20 30 32] (5, 2, 4)")


def test_the_command_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("cli.py", monkeypatch, "fit", "--config", "config.yaml")
    history = load_history(directory / "runs" / "cli" / "version_0")
    assert history.steps.tolist() == [0, 10, 20, 30, 32]
    assert {"entropy", "drift.key", "symmetry"} <= set(history)


@pytest.mark.parametrize(("threshold", "epochs"), [("0.1", 2), ("0.9999", 1)])
def test_early_stopping(
    directory: Path, monkeypatch: pytest.MonkeyPatch, threshold: str, epochs: int
) -> None:
    stop = FILES["stop.py"]
    assert "divergence_threshold=0.1," in stop
    (directory / "stop.py").write_text(stop.replace("threshold=0.1,", f"threshold={threshold},"))
    trainer = run("stop.py", monkeypatch)["trainer"]
    assert trainer.current_epoch == epochs
    assert 0.1 < trainer.callback_metrics["geometry/normalized_entropy"] < 0.9999


def test_every_metric_is_named() -> None:
    named = set(re.findall(r"``([a-z0-9_]+)``", DOC))
    missing = {spec.name.partition(".")[0] for spec in CATALOG.values()} - named
    assert missing == set()


def test_every_family_is_named() -> None:
    named = set(re.findall(r"^- ``([a-z_]+)``[:,]", DOC, re.MULTILINE))
    assert named == {spec.family for spec in CATALOG.values()}


def test_headline_metrics_are_those_of_the_catalogue() -> None:
    [sentence] = re.findall(r"The headline metrics are (.+?)\.\n\n", DOC, re.DOTALL)
    named = set(re.findall(r"``([a-z_.]+)``", sentence))
    headline = {name for spec in CATALOG.values() for name in spec.headline}
    # all roles of a metric go by its bare name
    assert named == {name if name.startswith("cone.") else name.partition(".")[0] for name in headline}


def test_key_metrics_are_those_of_the_catalogue() -> None:
    [sentence] = re.findall(r"The key metrics are (.+?)\.\n\n", DOC, re.DOTALL)
    key = [name for spec in CATALOG.values() for name in spec.key]
    assert re.findall(r"``([a-z_.]+)``", sentence) == key


def test_every_argument_is_described() -> None:
    doc = inspect.getdoc(GeometryMonitor.__init__) or ""
    arguments = re.findall(r"^    (\w+): ", doc[doc.index("Args:") : doc.index("Raises:")], re.MULTILINE)
    assert arguments == list(inspect.signature(GeometryMonitor).parameters)


def test_every_key_that_is_logged_is_listed(tmp_path: Path) -> None:
    families = sorted({spec.family for spec in CATALOG.values()})
    logger = TensorBoardLogger(tmp_path)
    monitor = GeometryMonitor(2, metrics=families, scalars="head", special_token_ids=[1])
    fit(tmp_path, Classifier(), monitor, logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    logged = {
        tag for kind in ("scalars", "images") for tag in events.Tags()[kind] if tag.startswith("geometry")
    }
    assert {"geometry/entropy", "geometry_cone/cone", "geometry_entropy/entropy/layer_00/head_01"} <= logged
    patterns = [re.compile(pattern_of(key)) for key in KEYS]
    assert [tag for tag in sorted(logged) if not any(p.fullmatch(tag) for p in patterns)] == []


def pattern_of(key: str) -> str:
    """What a listed key stands for, as a regular expression."""
    parts = {"<metric>": r"[a-z0-9_]+(\.[a-z_]+)*", "<family>": "[a-z_]+", "_03": r"_\d\d", "_05": r"_\d\d"}
    pattern = re.escape(key)
    for placeholder, stands_for in parts.items():
        pattern = pattern.replace(re.escape(placeholder), stands_for)
    return pattern
