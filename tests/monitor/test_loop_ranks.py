"""Two processes in each loop but Lightning's: one record, that of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_geo import GeometryHistory, load_history
from programs import loop_ranks
from support.forks import Forks

LOOPS = ["plain", "fabric", "accelerate", "transformers"]


def record(directory: Path) -> GeometryHistory:
    """The one record below a directory."""
    files = list(directory.rglob("events.out.tfevents.*"))
    (folder,) = {path.parent for path in files}
    return load_history(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_two_processes_record_what_one_does(name: str, tmp_path: Path, forks: Forks) -> None:
    loop_ranks.run(tmp_path / "one", name)
    forks.ranks(2, "programs.loop_ranks", str(tmp_path / "two"), name, folder=tmp_path)
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert one.steps.tolist() == two.steps.tolist() == [0, 2, 3]
    assert {*one.metadata["probe_fingerprint"]} == {*two.metadata["probe_fingerprint"]}
    assert set(one) == set(two)
    for key in one:
        np.testing.assert_allclose(two[key], one[key], rtol=1e-5, atol=1e-5, err_msg=key)
    assert np.nanmin(one["drift.query"][1:]) > 1e-3  # training moves what is compared
