"""``source="batch"`` with adapters, generation, checkpointing, frozen parts and compiled models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_geo import GeometryMonitor, measure
from support.lit import bert, fit, gpt2, loader
from support.training_steps import BATCH, Steps, assert_is_that_of, no_grad_before, sample


def lora() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(
        target_modules=["c_attn"], r=4, lora_alpha=64, init_lora_weights=False, fan_in_fan_out=True
    )
    return get_peft_model(gpt2(dropout=0.0), config)  # type: ignore[no-any-return, arg-type]


def preference(step: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), step.model.disable_adapter():
        reference = step.model(**inputs).logits
    return (step.model(**inputs).logits - reference).square().mean()  # type: ignore[no-any-return]


def test_the_reference_of_a_policy_with_its_adapter_off(tmp_path: Path) -> None:
    module = Steps(lora, preference)
    before: Any = copy.deepcopy(module.model)
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    assert_is_that_of(before, sample(tmp_path, module), inputs)
    with before.disable_adapter():
        reference = measure(before, inputs, metrics=["entropy"])["entropy"]
    assert not np.allclose(reference, measure(before, inputs, metrics=["entropy"])["entropy"], atol=1e-2)


def generating(step: Any, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["input_ids"]
    with torch.no_grad():
        step.model.generate(ids[:, :3], max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
    return step.model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def test_generation_within_a_step(tmp_path: Path) -> None:
    module = Steps(lambda: gpt2(dropout=0.0), generating)
    before = copy.deepcopy(module.model)
    assert_is_that_of(before, sample(tmp_path, module), {"input_ids": BATCH["input_ids"]})


def checkpointed(reentrant: bool) -> nn.Module:
    model = bert(dropout=0.0)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
    return model


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_inside_of_a_call_counts(reentrant: bool, tmp_path: Path) -> None:
    module = Steps(lambda: checkpointed(reentrant), no_grad_before)
    before = copy.deepcopy(module.model)
    assert_is_that_of(before, sample(tmp_path, module))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_call_that_is_checkpointed_as_a_whole_counts(reentrant: bool, tmp_path: Path) -> None:
    def compute(step: Any, batch: dict[str, Tensor]) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return step.model.bert.encoder(x).last_hidden_state  # type: ignore[no-any-return]

        x = step.model.bert.embeddings(batch["input_ids"])
        with torch.no_grad():  # a reference with checkpointing
            checkpoint(run, x.detach().flip(1), use_reentrant=reentrant)
        return checkpoint(run, x, use_reentrant=reentrant).square().mean()  # type: ignore[no-any-return]

    module = Steps(lambda: bert(dropout=0.0), compute)
    before: Any = copy.deepcopy(module.model)
    found = sample(tmp_path, module)["entropy"]
    expected = measure(
        before.bert.encoder, before.bert.embeddings(BATCH["input_ids"]).detach(), metrics=["entropy"]
    )
    np.testing.assert_allclose(found, expected["entropy"], atol=1e-5)


def test_frozen_parts_inside_of_a_call_count(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.end = bert(dropout=0.0), nn.Linear(2, 1)

        def forward(self, **batch: Tensor) -> Tensor:
            with torch.no_grad():
                logits = self.inner(**batch).logits
            return self.end(logits).square().mean()  # type: ignore[no-any-return]

    module = Steps(Frozen, lambda step, batch: step.model(**batch))
    before: Any = copy.deepcopy(module.model)
    assert_is_that_of(before.inner, sample(tmp_path, module))


def test_a_compiled_model_follows_the_same_rule(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = bert(dropout=0.0)
        model.compile(backend="eager")
        return model

    module = Steps(build, no_grad_before)
    monitor = GeometryMonitor(100, source="batch", strict=True, special_token_ids=[1])
    fit(tmp_path, module, monitor, data=loader(8, 4), steps=1)
    torch.manual_seed(0)
    assert monitor.last_record is not None
    assert_is_that_of(bert(dropout=0.0), monitor.last_record)
