"""Drift against the bases of another run, and runs that are no baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_geo import GeometryHistory, GeometryMonitor, load_history
from lightning_geo.functional import subspace_distance
from lightning_geo.storage.record import lookup
from support.lit import Classifier, fit


def history_of(directory: Path, name: str | None = None) -> GeometryHistory:
    """Where the record goes without a logger."""
    return load_history(directory / "lightning_geo" / "version_0", name)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    directory = tmp_path_factory.mktemp("earlier")
    fit(directory, Classifier(), GeometryMonitor(special_token_ids=[1], strict=True), steps=1)
    return directory / "lightning_geo" / "version_0"


@pytest.mark.parametrize("seed", [0, 5])
def test_drift_against_another_run_stays_against_it(seed: int, earlier: Path, tmp_path: Path) -> None:
    monitor = GeometryMonitor(every_n_steps=2, baseline=earlier, special_token_ids=[1], strict=True)
    fit(tmp_path, Classifier(seed=seed), monitor, steps=3)
    history, kept = history_of(tmp_path), load_history(earlier).record(0).matrices
    for role in ("query", "key", "value", "output"):
        drift = history[f"drift.{role}"]
        assert (drift[0] < 1e-5).all() if seed == 0 else (drift[0] > 0.1).all()
        assert (drift[1:] > 1e-3).all()
        against = torch.from_numpy(lookup(kept, f"basis.{role}").copy())
        for step, bases in history.matrices(f"basis.{role}").items():
            expected = subspace_distance(torch.from_numpy(bases.copy()), against)
            ours = drift[history.steps.tolist().index(step)]
            np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "rank"),
    [({"layers": 3}, 8), ({"heads": 2}, 8), ({"width": 64}, 8), ({}, 2)],
    ids=["layers", "heads", "width", "rank"],
)
def test_a_baseline_of_another_architecture_is_refused(
    earlier: Path, model: dict[str, Any], rank: int, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="`baseline` to be a run of the same model and `rank`"):
        fit(tmp_path, Classifier(**model), GeometryMonitor(baseline=earlier, rank=rank))


def test_a_baseline_without_bases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`baseline` to be the directory of a run"):
        fit(tmp_path, Classifier(), GeometryMonitor(baseline=tmp_path))
    fit(tmp_path, Classifier(), GeometryMonitor(metrics="entropy", strict=True), steps=1)
    with pytest.raises(ValueError, match="`baseline` to be a run that measured `drift`"):
        fit(tmp_path, Classifier(), GeometryMonitor(baseline=tmp_path / "lightning_geo" / "version_0"))
