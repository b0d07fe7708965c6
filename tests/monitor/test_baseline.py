"""Another run's bases: read once, and no more of that run than these."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lightning_geo.monitor import baseline
from lightning_geo.monitor.baseline import bases_of
from lightning_geo.storage.events import record_event
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.errors import ArgumentError

SAMPLES = 60


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many samples of many metrics, bases at the first and the last."""
    folder = tmp_path_factory.mktemp("run")
    writer = EventFileWriter(str(folder))
    for sample in range(SAMPLES):
        arrays = {f"metric_{i}": np.full((12, 12), sample, np.float32) for i in range(40)}
        pairs = np.zeros((12, 12, 12), np.float32)
        matrices = {"basis.query": np.full((2, 3, 4, 1), sample, np.float32), "head_similarity": pairs}
        ends = {"encoder": matrices} if sample in (0, SAMPLES - 1) else {}
        writer.add_event(record_event(GeometryRecord({"encoder": arrays}, {}, ends, step=sample), "geometry"))
    writer.close()
    return folder


#: Prints the largest memory that Python held while it read a run whole, and while it read its bases. In a
#: process of its own: whatever other tests left running allocates too.
PEAKS = """
import sys, tracemalloc
from lightning_geo import load_history
from lightning_geo.monitor.baseline import bases_of

for read in (load_history, bases_of):
    read(sys.argv[1])  # modules that are loaded late
    tracemalloc.start()
    read(sys.argv[1])
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_no_more_of_the_run_is_kept_than_its_bases(long_run: Path) -> None:
    bases = bases_of(long_run)
    assert {stack: list(roles) for stack, roles in bases.items()} == {"encoder": ["query"]}
    assert bases["encoder"]["query"].shape == (2, 3, 4, 1)
    assert not bases["encoder"]["query"].any()  # the first sample's
    command = [sys.executable, "-c", PEAKS, str(long_run)]
    whole, ours = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    everything = SAMPLES * 40 * 12 * 12 * 4
    assert whole > everything
    assert ours < everything / 4


def test_other_ranks_get_what_rank_0_read(
    long_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def broadcast(box: list[Any]) -> None:
        if rank == 0:
            sent[:] = box
        box[:] = sent

    def refuse(*args: Any) -> Any:
        raise AssertionError("read on another rank than 0")

    monkeypatch.setattr(baseline, "world_size", lambda: 2)
    monkeypatch.setattr(baseline, "rank", lambda: rank)
    monkeypatch.setattr(baseline.dist, "broadcast_object_list", broadcast)
    rank = 0
    bases = bases_of(long_run)
    read = baseline.read_history
    rank = 1
    monkeypatch.setattr(baseline, "read_history", refuse)
    assert bases_of(long_run)["encoder"]["query"].equal(bases["encoder"]["query"])
    rank = 0
    monkeypatch.setattr(baseline, "read_history", read)
    with pytest.raises(ArgumentError, match="`baseline` to be the directory of a run"):
        bases_of(tmp_path)
    rank = 1  # an error on both, so that neither waits for the other
    with pytest.raises(ArgumentError, match="`baseline` to be the directory of a run"):
        bases_of(tmp_path)
