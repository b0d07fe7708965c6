"""How a training with ``GeometryCallback`` ends: by errors, findings, or within another training."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from lightning_geo import Alerts, GeometryCallback, Level, Rule
from support.lit import sequences
from support.same import traces
from support.trainer_runs import callback, fit, made, options, record


@pytest.fixture(autouse=True)
def _precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TrainingArguments of transformers 4 write the precision into the environment, and leave it there."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


class Stops(TrainerCallback):
    """Raises in an event, outside of a training step."""

    def __init__(self, event: str, error: BaseException) -> None:
        self.error = error
        setattr(self, event, self._raise)

    def _raise(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 1:
            raise self.error


@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step", "on_step_end", "on_log"])
def test_what_fails_elsewhere_ends_at_the_next_use(event: str, tmp_path: Path) -> None:
    model, mine = made(), callback(source="batch", every_n_steps=1, metrics=["entropy"])
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "first", mine, Stops(event, KeyboardInterrupt()), model=model, logging_steps=1)
    assert record(tmp_path / "first").steps.tolist() == [0]
    fit(tmp_path / "second", mine)
    assert traces(model) == []
    assert record(tmp_path / "second").steps.tolist() == [0, 1, 2, 3]


def test_a_callback_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    model, mine = made(), callback(source="batch", every_n_steps=1, metrics=["entropy"])
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, mine, Stops("on_step_begin", KeyboardInterrupt()), model=model)
    del mine
    gc.collect()
    assert traces(model) == []


class Nested(TrainerCallback):
    """Trains another model within a step of the first."""

    def __init__(self, mine: GeometryCallback, directory: Path) -> None:
        self.mine, self.directory = mine, directory

    def on_substep_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 1:
            fit(self.directory, self.mine, model=made(seed=3), max_steps=2)


def test_a_training_within_a_training(tmp_path: Path) -> None:
    mine = callback(every_n_steps=1)
    nested = Nested(mine, tmp_path / "inner")
    fit(tmp_path / "outer", mine, nested, gradient_accumulation_steps=2)
    assert record(tmp_path / "outer").steps.tolist() == [0, 1, 2, 3, 4]
    assert record(tmp_path / "inner").steps.tolist() == [0, 1, 2]


def test_a_finding_stops_and_saves(tmp_path: Path) -> None:
    rule = Rule("always", ("entropy",), Level(at_least=0.0), "{where} have entropy.", next=("Go on.",))
    alerts = Alerts([rule], stop="note", checkpoint="note")
    trainer = fit(tmp_path, callback(every_n_steps=1, alerts=alerts), max_steps=20)
    assert trainer.state.global_step < 20
    assert list(tmp_path.glob("checkpoint-*"))


class WithoutUpdates(Trainer):
    """A Trainer that announces no update, as older ones."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.callback_handler.on_pre_optimizer_step = lambda args, state, control: control
        return super().train(*args, **kwargs)


def test_a_trainer_that_announces_no_update(tmp_path: Path) -> None:
    mine = callback()
    trainer = WithoutUpdates(made(), options(tmp_path), train_dataset=sequences(), callbacks=[mine])  # type: ignore[arg-type]
    trainer.train()
    assert record(tmp_path).steps.tolist() == [1, 2, 4]
    assert mine.last_record is not None
    assert mine.metrics["geometry/entropy"] > 0
