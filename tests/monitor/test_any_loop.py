"""Every loop that a monitor may watch: the same record, the same training, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_geo import GeometryHistory, load_history
from support.loops import LOOPS
from support.open_files import open_files
from support.same import assert_same, traces
from support.training_jobs import Job, Trained, model, with_head_of_sft

#: Families that take each way from the model to the record: attention, layers, weights, masks, a backward.
METRICS = ["entropy", "cone", "subspace", "updates", "masks", "weights", "importance"]
OTHERS = sorted(set(LOOPS) - {"lightning"})


def settings(**changes: Any) -> dict[str, Any]:
    given = {"every_n_steps": 2, "metrics": METRICS, "importance_every_n_samples": 2, "strict": True}
    return {**given, **changes}


def history(directory: Path, name: str = "geometry") -> GeometryHistory:
    """The record below a directory, which may be in the folder of several sessions."""
    files = sorted(directory.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
    folders = list(dict.fromkeys(path.parent for path in files))
    for folder in reversed(folders):
        try:
            return load_history(folder, name)
        except ValueError:
            continue
    raise AssertionError(f"no record below {directory}")


def assert_equal(ours: GeometryHistory, theirs: GeometryHistory) -> None:
    """Equal to 1e-6 at every sample."""
    assert ours.steps.tolist() == theirs.steps.tolist()
    assert set(ours) == set(theirs)
    for key in theirs:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-6, err_msg=key)
    for index in range(len(theirs)):
        mine, other = ours.record(index), theirs.record(index)
        assert mine.matrices.keys() == other.matrices.keys()
        assert mine.model == other.model


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each loop has recorded and trained, made once; ``as_sft`` with the loss of SFTTrainer."""
    made: dict[tuple[str, str, int, bool], tuple[GeometryHistory, Trained, dict[str, Any]]] = {}

    def get(name: str, source: str = "probe", accumulate: int = 1, as_sft: bool = False) -> Any:
        key = name, source, accumulate, as_sft
        if key not in made:
            directory = tmp_path_factory.mktemp(name)
            metrics = METRICS if source == "probe" else ["entropy", "cone", "importance"]
            if source == "batch" and (name == "sft" or as_sft):  # newer TRL computes a loss of its own
                metrics.remove("importance")
            monitors = [settings(source=source, metrics=metrics)]
            job = Job(directory, monitors, steps=5, accumulate=accumulate)
            trained = LOOPS[name](job, with_head_of_sft(model(job)) if as_sft else None)
            made[key] = history(directory), trained, trained.outcome()
        return made[key]

    return get


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("source", "accumulate"), [("probe", 1), ("probe", 2), ("batch", 2)])
def test_the_record_is_that_of_lightning(recorded: Any, name: str, source: str, accumulate: int) -> None:
    ours, trained, _ = recorded(name, source, accumulate)
    theirs, reference, _ = recorded("lightning", source, accumulate, as_sft=name == "sft")
    np.testing.assert_allclose(trained.losses, reference.losses, rtol=0, atol=1e-6)
    assert theirs.steps.tolist() == ([0, 2, 4, 5] if source == "probe" else [0, 2, 4])
    assert_equal(ours, theirs)
    batches = [ours.record(index).batches_seen for index in range(len(ours))]
    # a loop does not tell of its batches
    tells = name in ("transformers", "sft")
    assert batches == [step * accumulate if tells else step for step in ours.steps]


@pytest.mark.parametrize("name", LOOPS)
def test_training_is_as_without(recorded: Any, tmp_path: Path, name: str) -> None:
    without = LOOPS[name](Job(tmp_path, steps=5)).outcome()
    for source in ("probe", "batch"):
        _, trained, outcome = recorded(name, source)
        assert_same(outcome, without)
        assert traces(trained.model) == []


# -- life cycles


@pytest.mark.parametrize("name", LOOPS)
def test_a_monitor_is_used_again_after_a_crash(name: str, tmp_path: Path) -> None:
    """In the step whose batches become the probe, and in one whose forward is observed.

    One by a failure, the other by Ctrl-C, in every second loop the other way round.
    """
    errors: list[BaseException] = [RuntimeError("boom"), KeyboardInterrupt()]
    if list(LOOPS).index(name) % 2:
        errors.reverse()
    for error, (source, fails_at) in zip(errors, (("probe", 0), ("batch", 2)), strict=True):
        given = [settings(source=source, metrics=["entropy"])]
        crashed, again = tmp_path / f"{source} crashed", tmp_path / f"{source} again"
        job = Job(crashed, given, fails_at=fails_at, error=error)
        made = model(job)
        with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
            LOOPS[name](job, made)
        assert traces(made) == []
        if fails_at:
            assert history(crashed).steps.tolist() == [0]
        assert [path for path in open_files(crashed) if "tfevents" in path] == []
        LOOPS[name](Job(again, given, uses=job.made))
        assert traces(made) == []
        assert history(again).steps.tolist() == ([0, 2, 4] if source == "probe" else [0, 2])


@pytest.mark.parametrize("name", LOOPS)
def test_a_resumed_run_goes_on(recorded: Any, name: str, tmp_path: Path) -> None:
    given = [settings(metrics=["entropy", "subspace"])]
    LOOPS[name](Job(tmp_path / "first", given, steps=3, saves_at=3))
    LOOPS[name](Job(tmp_path / "second", given, steps=5, resumes=tmp_path / "first"))
    whole, second = recorded(name)[0], history(tmp_path / "second")
    assert whole.steps.tolist() == [0, 2, 4, 5]
    assert second.steps.tolist() == [4, 5]
    fingerprints = {*whole.metadata["probe_fingerprint"], *second.metadata["probe_fingerprint"]}
    assert len(fingerprints) == 1
    if name == "lightning":  # its loader begins anew, so that it trains on other batches
        return
    for key in ("entropy", "drift.query", "velocity.query"):  # against the first session's samples
        np.testing.assert_allclose(second[key], whole[key][2:], rtol=0, atol=1e-5, err_msg=key)
    assert np.nanmax(whole["drift.query"][2:]) > 1e-3


@pytest.mark.parametrize("name", LOOPS)
def test_two_monitors_at_once_are_as_each_alone(recorded: Any, name: str, tmp_path: Path) -> None:
    alone, _, outcome = recorded(name)
    both = [settings(name=other, metrics=["entropy", "subspace"]) for other in ("one", "two")]
    trained = LOOPS[name](Job(tmp_path, both, steps=5))
    assert_same(trained.outcome(), outcome)
    for other in ("one", "two"):
        mine = history(tmp_path, other)
        assert mine.steps.tolist() == alone.steps.tolist()
        for key in mine:
            np.testing.assert_array_equal(mine[key], alone[key], err_msg=key)


@pytest.mark.parametrize("name", LOOPS)
def test_a_monitor_is_used_for_another_run(recorded: Any, name: str, tmp_path: Path) -> None:
    given = [settings(metrics=["entropy", "subspace"])]
    first = LOOPS[name](Job(tmp_path / "first", given, steps=2, seed=3))
    LOOPS[name](Job(tmp_path / "second", given, steps=5, uses=first.monitors))
    assert history(tmp_path / "first").steps.tolist() == [0, 2]
    ours, alone = history(tmp_path / "second"), recorded(name)[0]
    assert ours.steps.tolist() == alone.steps.tolist()
    for key in ours:
        np.testing.assert_array_equal(ours[key], alone[key], err_msg=key)
