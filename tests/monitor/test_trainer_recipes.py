"""``GeometryCallback`` with what PEFT, TRL, axolotl, compilation and mixed precision make of a Trainer."""

from __future__ import annotations

import inspect
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from lightning_geo import GeometryCallback
from support.same import traces
from support.trainer_loops import tokenizer
from support.trainer_runs import callback, fit, llama, made, options, record


@pytest.fixture(autouse=True)
def _precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TrainingArguments of transformers 4 write the precision into the environment, and leave it there."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


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
