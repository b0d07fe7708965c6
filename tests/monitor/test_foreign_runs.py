"""A metric from outside in a run: training is untouched, failures are said once, the record describes it."""

from __future__ import annotations

import importlib
import pickle
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.metrics.foreign import FOREIGN
from support.lit import Classifier, fit, loader, trainer
from support.registry import nothing_registered, register, spec_named


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    with nothing_registered():
        yield


def spoils(entropy: Tensor) -> Tensor:
    entropy.zero_()
    torch.manual_seed(random.randrange(99) + np.random.randint(9))
    return torch.rand_like(entropy)


def raises(entropy: Tensor) -> Tensor:
    torch.rand(1)
    raise ArithmeticError("no")


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_run_with_bad_metrics_is_the_run_without(tmp_path: Path, source: str) -> None:
    register("spoils", spoils)
    register("raises", raises)
    alone, beside = Classifier(), Classifier()
    fit(tmp_path / "a", alone, GeometryMonitor(2, metrics=["entropy"], source=source))  # type: ignore[arg-type]
    metrics = ["entropy", "spoils", "raises"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path / "b", beside, GeometryMonitor(2, metrics=metrics, source=source))  # type: ignore[arg-type]
    assert beside.losses == alone.losses
    assert all(map(torch.equal, beside.state_dict().values(), alone.state_dict().values()))
    ours, theirs = (load_history(next((tmp_path / name).rglob("version_0"))) for name in "ba")
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert "spoils" in ours
    assert "raises" not in ours
    [said] = [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]
    assert said.startswith("GeometryMonitor: the metric 'raises' is absent: ArithmeticError: no (")


def test_strict_raises_what_a_metric_raises(tmp_path: Path) -> None:
    register("raises", raises)
    with pytest.raises(ArithmeticError, match="no"):
        fit(tmp_path, Classifier(), GeometryMonitor(2, metrics=["raises", "entropy"], strict=True))


def test_a_resumed_run_goes_on_with_it_and_no_reader_needs_it(tmp_path: Path) -> None:
    register("mine", lambda entropy: entropy * 2, unit="nats", range=(0.0, None), headline=("mine",))
    metrics = ["entropy", "mine"]
    first = fit(tmp_path, Classifier(), GeometryMonitor(2, metrics=metrics))
    assert "geometry/mine" in first.callback_metrics
    first.save_checkpoint(tmp_path / "middle.ckpt")
    second = trainer(tmp_path, GeometryMonitor(2, metrics=metrics), steps=8)
    second.fit(Classifier(), loader(), ckpt_path=tmp_path / "middle.ckpt")
    FOREIGN.clear()
    history = load_history(next(tmp_path.rglob("version_0")))
    assert history.steps.tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(history["mine"], 2 * history["entropy"], rtol=1e-6)
    expected = spec_named("mine", unit="nats", range=(0.0, None), headline=("mine",), default=False)
    assert history.specs == {"mine": expected}
    assert history.record(-1).summaries()["mine"] == pytest.approx(float(history["mine"][-1].mean()))


DEFINING = """
from support.registry import register

def plugged(entropy):
    return entropy

register("plugged", plugged)
"""


def test_a_spawned_rank_registers_what_its_monitor_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "defines_plugged.py").write_text(DEFINING)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("defines_plugged")
    pickled = pickle.dumps(GeometryMonitor(metrics=["plugged"]))
    FOREIGN.clear()  # as in a process that has imported nothing yet
    monkeypatch.delitem(sys.modules, "defines_plugged")
    pickle.loads(pickled)
    assert FOREIGN["plugged"].function.__module__ == "defines_plugged"
    FOREIGN.clear()
    monkeypatch.setitem(sys.modules, "defines_plugged", None)  # cannot be imported there
    with pytest.warns(UserWarning, match="'defines_plugged', which defines the metric 'plugged', cannot be"):
        pickle.loads(pickled)


def test_random_rows_give_an_estimate_with_its_error(tmp_path: Path) -> None:
    register("mine", lambda entropy: entropy)
    fit(tmp_path, Classifier(), GeometryMonitor(4, metrics=["metric:entropy", "mine"], max_queries=4))
    history = load_history(next(tmp_path.rglob("version_0")))
    for suffix in ("", ".stderr"):
        np.testing.assert_allclose(history[f"mine{suffix}"], history[f"entropy{suffix}"], rtol=1e-6)
    assert history["mine.stderr"].max() > 0
