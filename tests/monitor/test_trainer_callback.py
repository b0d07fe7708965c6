"""``GeometryCallback`` under ``transformers.Trainer``: its records, its probe and its checkpoints."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import DataCollatorWithFlattening

from lightning_geo import GeometryCallback, load_history
from support.lit import sequences
from support.open_files import open_files
from support.trainer_loops import tokenizer
from support.trainer_runs import callback, fit, llama, made, messages, options, record


@pytest.fixture(autouse=True)
def _precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TrainingArguments of transformers 4 write the precision into the environment, and leave it there."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


# -- where records go


def test_tensorboard_has_it_all_in_the_run_of_the_trainer(tmp_path: Path) -> None:
    trainer = fit(tmp_path, callback(), report_to="tensorboard", logging_steps=1)
    (folder,) = (tmp_path / "runs").iterdir()
    history = load_history(folder)
    assert history.steps.tolist() == [0, 2, 4]
    events = EventAccumulator(str(folder)).Reload()
    logged = [event.value for event in events.Scalars("geometry/entropy")]
    np.testing.assert_allclose(logged, history["entropy"].mean((1, 2)), rtol=1e-6)
    assert len(events.Scalars("train/loss")) == 4
    assert [path for path in open_files(tmp_path) if "tfevents" in path] == []
    assert not (tmp_path / "lightning_geo").exists()
    assert "training_step" not in vars(trainer)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    import wandb

    wandb.teardown()  # W&B reads its environment once: after another test it would write where pytest began
    try:
        fit(tmp_path, callback(), report_to="wandb")
        summary, folder = dict(wandb.run.summary), wandb.run.dir
    finally:
        wandb.finish()
        wandb.teardown()  # later tests get none of this one's settings
    assert Path(folder).is_relative_to(tmp_path)
    assert {"geometry/entropy", "geometry_change/entropy", "geometry/report"} <= set(summary)
    assert load_history(folder).steps.tolist() == [0, 2, 4]


# -- the probe


def test_an_evaluation_before_the_first_step_gives_the_probe(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        fit(tmp_path / name, callback(), data=sequences(seed=seed), eval_on_start=True,
            per_device_eval_batch_size=4, prediction_loss_only=True)  # fmt: skip
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert one.steps.tolist() == [0, 2, 4]
    assert {*one.metadata["probe_fingerprint"]} == {*two.metadata["probe_fingerprint"]}
    np.testing.assert_array_equal(one["entropy"][0], two["entropy"][0])


def test_the_divisor_of_the_loss_is_no_input(tmp_path: Path) -> None:
    """``importance`` is that of each sequence's own loss, however many batches a step has."""
    records = []
    for accumulate in (1, 4):
        rows = [
            {"input_ids": row["input_ids"].clamp(min=3), "labels": row["input_ids"]} for row in sequences()
        ]
        one = callback(metrics=["importance"], probe_size=4)
        fit(tmp_path / str(accumulate), one, model=llama(), data=rows, gradient_accumulation_steps=accumulate)
        records.append(record(tmp_path / str(accumulate)))
    np.testing.assert_allclose(records[0]["importance"][0], records[1]["importance"][0], rtol=1e-5)


def test_batches_grouped_by_length(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, *range(2, 5 + index % 7)], "labels": index % 2} for index in range(32)]
    sampling = "train_sampling_strategy" if hasattr(options(tmp_path), "train_sampling_strategy") else ""
    grouped = {sampling: "group_by_length"} if sampling else {"group_by_length": True}
    from transformers import DataCollatorWithPadding

    fit(tmp_path, callback(), data=rows, collator=DataCollatorWithPadding(tokenizer()), **grouped)
    assert record(tmp_path).steps.tolist() == [0, 2, 4]


def test_rows_without_padding_are_measured_by_document(tmp_path: Path) -> None:
    """The same documents, flattened into one row and padded, give the same numbers."""
    rows = [{"input_ids": [1, *range(2, 5 + index % 7)]} for index in range(4)]
    for row in rows:
        row["labels"] = row["input_ids"]
    fit(tmp_path / "flat", callback(probe_size=4), model=llama(), data=rows,
        collator=DataCollatorWithFlattening(return_position_ids=True), max_steps=1)  # fmt: skip
    longest = max(len(row["input_ids"]) for row in rows)
    padded = [
        {
            "input_ids": torch.tensor(row["input_ids"] + [0] * (longest - len(row["input_ids"]))),
            "attention_mask": torch.tensor(
                [1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"]))
            ),
            "labels": torch.tensor(row["labels"] + [-100] * (longest - len(row["labels"]))),
        }
        for row in rows
    ]
    fit(tmp_path / "padded", callback(probe_size=4), model=llama(), data=padded, max_steps=1)
    flat, whole = record(tmp_path / "flat"), record(tmp_path / "padded")
    np.testing.assert_allclose(flat["entropy"][0], whole["entropy"][0], atol=1e-5)


# -- checkpoints


def test_the_state_is_found_beside_the_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, callback(), max_steps=3, save_strategy="steps", save_steps=3)
    assert (tmp_path / "checkpoint-3" / "lightning_geo-geometry.pt").exists()
    fit(tmp_path, callback(), max_steps=5, resume=True)
    history = record(tmp_path)  # the run's own directory
    assert history.steps.tolist() == [0, 2, 4, 5]
    assert len({*history.metadata["probe_fingerprint"]}) == 1


def test_a_checkpoint_of_another_run_is_none(tmp_path: Path) -> None:
    """``output_dir`` has a checkpoint of the same step, which is not the one that is resumed from."""
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1}
    fit(tmp_path / "mine", callback(), **saving)
    fit(tmp_path / "other", callback(), model=made(seed=3), data=sequences(seed=3), **saving)
    mine = tmp_path / "mine" / "checkpoint-3"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path / "other", callback(), max_steps=5, resume=str(mine), logging_steps=1)
    assert "the state of the monitor was not found" in messages(caught)
    # where the arguments name it, it is
    shutil.rmtree(tmp_path / "other" / "checkpoint-3")
    fit(tmp_path / "third", callback(), max_steps=5, resume=str(mine), resume_from_checkpoint=str(mine))
    first, third = record(tmp_path / "mine"), record(tmp_path / "third")
    assert {*third.metadata["probe_fingerprint"]} == {*first.metadata["probe_fingerprint"]}


def test_wrong_arguments_are_errors_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`layers` to match"):
        fit(tmp_path, GeometryCallback(layers="none of them"))
