"""``GeometryCallback`` under ``transformers.Trainer`` and what TRL, PEFT and axolotl make of it."""

from __future__ import annotations

import gc
import inspect
import shutil
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from lightning_geo import Alerts, GeometryCallback, GeometryHistory, Level, Rule, load_history
from support.lit import bert, sequences
from support.loops import tokenizer
from support.open_files import open_files
from support.same import traces

METRICS = ["entropy", "subspace"]


@pytest.fixture(autouse=True)
def _precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TrainingArguments of transformers 4 write the precision into the environment, and leave it there."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def made(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return bert(**options)


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            # with a cache, which the Trainer of transformers 4 leaves on, a row's documents see each other
            use_cache=False,
        )
    )  # fmt: skip


def options(directory: Path, kind: Any = TrainingArguments, **changes: Any) -> Any:
    given = {
        "output_dir": str(directory), "max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2,
    }  # fmt: skip
    return kind(**{**given, **changes})


def callback(**changes: Any) -> GeometryCallback:
    return GeometryCallback(**{"every_n_steps": 2, "metrics": METRICS, "strict": True, **changes})


def fit(directory: Path, *callbacks: Any, model: Any = None, data: Any = None, **changes: Any) -> Trainer:
    resume = changes.pop("resume", None)
    collator = changes.pop("collator", None)
    trainer = Trainer(
        model or made(), options(directory, **changes), collator, data or sequences(),
        eval_dataset=sequences(8, seed=5), callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def record(directory: Path, version: int = 0) -> GeometryHistory:
    return load_history(directory / "lightning_geo" / f"version_{version}")


def messages(caught: list[warnings.WarningMessage]) -> str:
    return "\n".join(str(w.message) for w in caught if "GeometryMonitor" in str(w.message))


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


# -- what trains


def test_peft(tmp_path: Path) -> None:
    model = get_peft_model(
        made(), LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights="gaussian")
    )
    fit(tmp_path, callback(), model=model, learning_rate=0.5)
    history = record(tmp_path)
    assert history.steps.tolist() == [0, 2, 4]
    assert np.nanmax(history["drift.query"][-1]) > 1e-3
    assert traces(model) == []


@pytest.mark.slow
def test_a_compiled_model(tmp_path: Path) -> None:
    for compiled in (False, True):
        fit(tmp_path / str(compiled), callback(), model=made(dropout=0.0), torch_compile=compiled,
            torch_compile_backend="eager" if compiled else None)  # fmt: skip
    ours, theirs = record(tmp_path / "True"), record(tmp_path / "False")
    assert ours.steps.tolist() == [0, 2, 4]
    np.testing.assert_allclose(ours["entropy"][0], theirs["entropy"][0], atol=1e-6)
    np.testing.assert_allclose(ours["drift.query"], theirs["drift.query"], atol=1e-3)


def test_mixed_precision(tmp_path: Path) -> None:
    fit(tmp_path, callback(), model=made(dropout=0.0), bf16=True)
    assert record(tmp_path).steps.tolist() == [0, 2, 4]


def test_padding_free_sft(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": [1, *range(2, 5 + index % 7)]} for index in range(32)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*[Pp]adding-free.*")
        arguments = options(tmp_path, SFTConfig, padding_free=True, max_length=None, bf16=False,
                            gradient_checkpointing=False)  # fmt: skip
        trainer = SFTTrainer(llama(), arguments, train_dataset=rows, processing_class=tokenizer(),
                             callbacks=[callback(strict=False)])  # fmt: skip
        trainer.train()
    history = record(tmp_path)
    assert history.steps.tolist() == [0, 2, 4]
    assert traces(trainer.model) == []


def test_dpo(tmp_path: Path) -> None:
    rows = Dataset.from_list(
        [{"prompt": "w3 w4", "chosen": f"w{index % 9 + 5}", "rejected": "w20 w21"} for index in range(32)]
    )
    arguments = options(tmp_path, DPOConfig, bf16=False, gradient_checkpointing=False)
    trainer = DPOTrainer(llama(), llama(), args=arguments, train_dataset=rows, processing_class=tokenizer(),
                         callbacks=[callback()])  # fmt: skip
    trainer.train()
    assert record(tmp_path).steps.tolist() == [0, 2, 4]
    assert traces(trainer.model) == []


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


# -- the end of it


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


def test_wrong_arguments_are_errors_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`layers` to match"):
        fit(tmp_path, GeometryCallback(layers="none of them"))


# -- axolotl


class BasePlugin:
    """The methods of axolotl's base class that the plugin overrides, as its source documents them."""

    def get_input_args(self) -> str | None: ...

    def add_callbacks_pre_trainer(self, cfg: Any, model: nn.Module) -> list[Any]:
        return []


def test_the_plugin_of_axolotl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("axolotl", "axolotl.integrations", "axolotl.integrations.base"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["axolotl.integrations.base"], "BasePlugin", BasePlugin, raising=False)
    monkeypatch.delitem(sys.modules, "lightning_geo.monitor.axolotl_plugin", raising=False)
    import lightning_geo.monitor.axolotl_plugin as module

    for name in ("get_input_args", "add_callbacks_pre_trainer"):
        theirs, ours = (
            inspect.signature(getattr(kind, name)) for kind in (BasePlugin, module.GeometryPlugin)
        )
        assert list(ours.parameters) == list(theirs.parameters)
    path, _, kind = module.GeometryPlugin().get_input_args().rpartition(".")
    assert getattr(sys.modules[path], kind)(lightning_geo={"rank": 2}).lightning_geo == {"rank": 2}
    for given in (None, {"every_n_steps": 7}):
        (added,) = module.GeometryPlugin().add_callbacks_pre_trainer(
            types.SimpleNamespace(lightning_geo=given), made()
        )
        assert isinstance(added, GeometryCallback)
