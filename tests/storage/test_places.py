"""Runs behind URLs of fsspec are written and read where the URL leads, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.cli.main import main
from lightning_geo.cli.tail import newest
from lightning_geo.storage.follow import Follower
from lightning_geo.storage.places import Remote, place
from lightning_geo.storage.record_file import RecordFile
from support.lit import Classifier, fit, loader, trainer
from support.records import make_record


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """An empty memory file system; nothing may appear in the working directory."""
    monkeypatch.chdir(tmp_path)
    system = fsspec.filesystem("memory")
    system.store.clear()  # fsspec of 2025 cannot remove its root
    system.pseudo_dirs[:] = [""]
    yield system
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("memory")]


def monitor(**options: Any) -> GeometryMonitor:
    return GeometryMonitor(1, metrics=["entropy", "drift"], strict=True, **options)


LOGGERS: dict[str, Any] = {
    "none": lambda url: False,
    "csv": lambda url: CSVLogger(url, "lightning_geo", version=0),
    "tensorboard": lambda url: TensorBoardLogger(url, "lightning_geo", version=0),
}


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_record_is_written_to_a_url_and_read_from_it(logger: str, tmp_path: Path) -> None:
    fit("memory://root/runs", Classifier(), monitor(), steps=2, logger=LOGGERS[logger]("memory://root/runs"))
    fit(tmp_path / "local", Classifier(), monitor(), steps=2)
    ours = load_history("memory://root/runs/lightning_geo/version_0")
    theirs = load_history(tmp_path / "local" / "lightning_geo" / "version_0")
    assert ours.steps.tolist() == theirs.steps.tolist() == [0, 1, 2]
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_run_behind_a_url_goes_on(logger: str, tmp_path: Path) -> None:
    url = "memory://root/runs"
    runner = fit(url, Classifier(), monitor(), steps=2, logger=LOGGERS[logger](url))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    again = trainer(url, monitor(), steps=3, logger=LOGGERS[logger](url))
    again.fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert load_history(f"{url}/lightning_geo/version_0").steps.tolist() == [0, 1, 2, 3]


def test_runs_and_baselines_behind_urls(capsys: pytest.CaptureFixture[str]) -> None:
    fit("memory://root", Classifier(), monitor(), steps=2)
    other = monitor(baseline="memory://root/lightning_geo/version_0")
    fit("memory://root", Classifier(seed=3), other, steps=2)
    assert (load_history("memory://root/lightning_geo/version_1")["drift"][0] > 0.1).all()
    with pytest.raises(
        FileNotFoundError, match="These directories below it have: memory://root/lightning_geo/version_0"
    ):
        load_history("memory://root/lightning_geo")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_history("memory://elsewhere")
    assert main(["show", "memory://root"]) == 0
    shown = capsys.readouterr().out
    assert "version_0" in shown
    assert "version_1" in shown
    assert main(["compare", "memory://root/lightning_geo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["show", "memory://elsewhere"]) == 2
    assert main(["show", "nosuchprotocol://runs"]) == 2
    assert "Cannot open" in capsys.readouterr().err


def test_a_report_of_a_url(tmp_path: Path) -> None:
    fit("memory://root", Classifier(), monitor(), steps=2)
    assert main(["report", "memory://root", "-o", str(tmp_path / "report.html")]) == 0
    assert "normalized_entropy" in (tmp_path / "report.html").read_text()


def test_a_run_behind_a_url_is_followed() -> None:
    sink = RecordFile("memory://root/run", "geometry")
    sink.write(make_record(0, metrics=["entropy"]))
    follower = Follower("memory://root/run")
    assert [news.record.step for news in follower.poll() if news.record] == [0]
    sink.write(make_record(50, metrics=["entropy"]))
    assert [news.record.step for news in follower.poll() if news.record] == [50]
    assert str(newest("memory://root")) == "memory://root/run"


class NoAppend(MemoryFileSystem):
    """Refuses to append, as some object stores do."""

    protocol = "noappend"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "a" in mode:
            raise NotImplementedError("append")
        return super()._open(path, mode, **options)


class Replaces(MemoryFileSystem):
    """Takes an append for a new content, as others do."""

    protocol = "replaces"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return super()._open(path, "wb" if "a" in mode else mode, **options)


@pytest.mark.parametrize(
    ("system", "files"), [(MemoryFileSystem, 1), (NoAppend, 4), (Replaces, 4)], ids=lambda x: str(x)
)
def test_each_sample_is_there_when_write_returns(system: Any, files: int) -> None:
    protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    fsspec.register_implementation(protocol, system, clobber=True)
    url = f"{protocol}://root/run"
    sink, written = RecordFile(url, "geometry"), []
    for step in (0, 50, 100, 150):
        sink.write(make_record(step, metrics=["entropy"]))
        written.append(step)
        assert load_history(url).steps.tolist() == written
    sink.close()
    assert len(list(place(url).iterdir())) == files
    resumed = RecordFile(url, "geometry", resumed_at=100)
    resumed.write(make_record(120, metrics=["entropy"]))
    assert load_history(url).steps.tolist() == [0, 50, 120]


def test_urls_of_local_files_are_paths(tmp_path: Path) -> None:
    assert place(f"file://{tmp_path}/runs") == tmp_path / "runs"
    fit(tmp_path, Classifier(), monitor(), steps=1)
    assert load_history(f"file://{tmp_path}/lightning_geo/version_0").steps.tolist() == [0, 1]


@pytest.mark.parametrize("url", ["memory://a/b/c", "memory:///a/b/c", "memory://a/b/c/"])
def test_the_parts_of_a_url(url: str) -> None:
    where = place(url)
    assert isinstance(where, Remote)
    assert where.name == "c"
    assert where.parent.name == "b"
    assert where.parent / "c" == where
    assert {where, where.parent / "c"} == {where}
