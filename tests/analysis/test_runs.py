"""Where runs are found, what they are called, and what becomes of those that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_geo import GeometryHistory, GeometryRecord
from lightning_geo.analysis.runs import describe_model, heads_per_layer, metric_series, names_of, open_runs
from lightning_geo.storage.event_files import find_runs
from lightning_geo.utils.errors import RunError
from support.records import make_record, write

# -- finding


def test_a_logdir_gives_its_runs_by_their_path(tmp_path: Path) -> None:
    for run in ("bert/version_0", "lora/version_0", "lora/version_1"):
        write(tmp_path / run)
    (tmp_path / "lora" / "notes.txt").touch()
    found = find_runs(tmp_path)
    assert found == [tmp_path / run for run in ("bert/version_0", "lora/version_0", "lora/version_1")]
    [runs], notes = open_runs([tmp_path])
    assert [run.name for run in runs] == ["bert/version_0", "lora/version_0", "lora/version_1"]
    assert notes == []
    separate, _ = open_runs([found[0], found[2]])
    assert [[run.name for run in runs] for runs in separate] == [["bert/version_0"], ["lora/version_1"]]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/version_0"], ["a/version_0"]),
        (["a/version_0", "a/version_0"], ["a/version_0", "a/version_0"]),
        (["a/x", "a/y"], ["x", "y"]),
        (["a", "a/eval"], ["a", "eval"]),
    ],
)
def test_names_tell_runs_apart(paths: list[str], names: list[str]) -> None:
    assert names_of([Path(path) for path in paths]) == names


def test_wandb_runs_are_found_once_each(tmp_path: Path) -> None:
    # two sessions of run `one`, one of run `two`, and the link that W&B sets
    for directory, run in (("offline-run-1-one", "one"), ("offline-run-2-one", "one"), ("run-3-two", "two")):
        write(tmp_path / "wandb" / directory / "files")
        (tmp_path / "wandb" / directory / f"run-{run}.wandb").touch()
    (tmp_path / "wandb" / "latest-run").symlink_to("run-3-two")
    assert [run.name for run in find_runs(tmp_path)] == ["offline-run-2-one", "run-3-two"]
    [alone] = find_runs(tmp_path / "wandb" / "run-3-two")
    assert alone.name == "run-3-two"
    assert len(open_runs([tmp_path / "wandb" / "latest-run"])[0][0]) == 1  # a link that somebody named


def test_a_wandb_run_that_was_renamed_is_read(tmp_path: Path) -> None:
    write(tmp_path / "best" / "files", 0, 50)
    (tmp_path / "best" / "run-one.wandb").touch()
    [[run]], notes = open_runs([tmp_path / "best"])
    assert (run.history.steps.tolist(), notes) == ([0, 50], [])


def test_links_out_of_the_logdir_are_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "elsewhere")
    logdir = write(tmp_path / "logs" / "mine").parent
    (logdir / "yours").symlink_to(secret)
    assert find_runs(logdir) == [logdir / "mine"]

    stolen = logdir / "stolen"
    stolen.mkdir()
    (stolen / "events.out.tfevents.1").symlink_to(next(secret.iterdir()))
    [runs], notes = open_runs([logdir])
    assert [run.path for run in runs] == [logdir / "mine"]
    assert "links to a file outside the run's directory" in notes[0]
    with pytest.raises(RunError, match="links to a file outside the run's directory"):
        open_runs([stolen])


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere' does not exist"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is empty"):
        find_runs(tmp_path)
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(RunError, match=r"no event file .* holds metrics\.csv"):
        find_runs(tmp_path)
    with SummaryWriter(str(tmp_path / "other")) as writer:
        writer.add_scalar("train_loss", 1.0, 0)
    with pytest.raises(RunError, match="only tags such as train_loss"):
        open_runs([tmp_path])


def test_runs_that_cannot_be_read_cost_themselves_alone(tmp_path: Path) -> None:
    write(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "events.out.tfevents.1").write_bytes(os.urandom(5000))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "events.out.tfevents.1").touch()
    file = next((tmp_path / "good").iterdir())
    file.write_bytes(file.read_bytes()[:-3])  # its writer was killed
    [runs], notes = open_runs([tmp_path])
    assert [run.history.steps.tolist() for run in runs] == [[0]]
    assert any("half-written last event" in note for note in notes)
    assert any("2 of 3 runs" in note for note in notes)


def test_monitors_are_chosen_by_name(tmp_path: Path) -> None:
    write(tmp_path, 0, name="probe")
    write(tmp_path, 0, 9, name="train")
    with pytest.raises(RunError, match=r"\['probe', 'train'\]"):
        open_runs([tmp_path])
    [[run]], _ = open_runs([tmp_path], "train")
    assert run.history.steps.tolist() == [0, 9]


# -- what is in a run


def test_series_leave_out_what_this_version_does_not_know() -> None:
    stacks = {
        "encoder": {
            "entropy": np.array([[1.0, np.inf], [np.nan, 3.0]]),
            "of_tomorrow": np.ones((2, 2)),
            "attention_distance": np.ones((2, 2, 2)),  # an axis too many
            "self_mass": np.full((2, 2), np.nan),
        }
    }
    [found] = metric_series(GeometryHistory([GeometryRecord(stacks)]))
    assert (found.key, found.stack, found.values.shape) == ("entropy", "encoder", (1, 2, 2))
    assert found.model().tolist() == [2.0]


def test_the_model_number_is_that_of_the_record() -> None:
    record = make_record(stacks=["enc", "dec"])
    history = GeometryHistory([record])
    model = {of.key: of.model()[0] for of in metric_series(history)}
    assert model == pytest.approx(record.summaries(), rel=1e-6)


def test_layers_and_heads_come_from_the_structure_or_the_arrays() -> None:
    history = GeometryHistory([make_record(layers=4, heads=5, metrics=["entropy"])])
    assert heads_per_layer(history) == {"encoder": (5,) * 4}
    assert describe_model(history) == "Tiny (encoder: 4 layers × 5 heads)"
    for structure in (
        {},
        {"stacks": None},
        {"stacks": {"encoder": 3}},
        {"stacks": {"encoder": {"heads": ["x"]}}},
    ):
        history.model = structure
        assert heads_per_layer(history) == {"encoder": (5,) * 4}
