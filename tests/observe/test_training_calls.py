"""``source="batch"`` counts the calls that are part of training, and no others."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate

from lightning_geo import GeometryMonitor, GeometryRecord, measure
from lightning_geo.observe.training_calls import begins_training
from support.lit import Lit, bert, fit, gpt2, loader, sequences
from support.same import assert_same, outcome, traces

Loss = Callable[[Any, dict[str, Tensor]], Tensor]
BATCH = default_collate(sequences(4))


class Steps(Lit):
    """Its loss is computed by a function of it and a batch."""

    def __init__(self, build: Callable[[], nn.Module], compute: Loss, **options: Any) -> None:
        super().__init__(build, **options)
        self.compute = compute

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.compute(self, batch)


def plain(step: Any, batch: dict[str, Tensor]) -> Tensor:
    return step.model(**batch).loss  # type: ignore[no-any-return]


def shuffled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other sequences of the same shape."""
    mask = torch.ones_like(batch["attention_mask"])
    mask[:, 4:] = 0  # much lower entropy
    return {**batch, "input_ids": batch["input_ids"].flip(1), "attention_mask": mask}


def sample(directory: Path, module: Lit, **options: Any) -> GeometryRecord:
    """The first sample of a run, after checking that training was as without it."""
    other = copy.deepcopy(module)
    monitor = GeometryMonitor(100, source="batch", strict=True, metrics=["entropy", "pattern", "importance"],
                              importance_every_n_samples=1, special_token_ids=[1])  # fmt: skip
    alone = outcome(fit(directory / "alone", other, data=loader(8, 4), steps=2, **options), other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = outcome(fit(directory, module, monitor, data=loader(8, 4), steps=2, **options), module)
    assert_same(watched, alone)
    assert traces(module) == traces(other)
    record = monitor.last_record
    assert record is not None
    return record


def assert_is_that_of(model: nn.Module, record: GeometryRecord, batch: dict[str, Tensor] = BATCH) -> None:
    expected = measure(model, batch, metrics=["entropy", "pattern"], special_token_ids=[1])
    for key in expected:
        np.testing.assert_allclose(record[key], expected[key], atol=1e-5, err_msg=key)


def no_grad_before(step: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        reference = step.model(**shuffled(batch)).loss
    return plain(step, batch) + reference


def no_grad_after(step: Any, batch: dict[str, Tensor]) -> Tensor:
    loss = plain(step, batch)
    with torch.no_grad():
        reference = step.model(**shuffled(batch)).loss
    return loss + reference


def inference_mode(step: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        step.model(**shuffled(batch))
    return plain(step, batch)


def parts_alone(step: Any, batch: dict[str, Tensor]) -> Tensor:
    """The reference calls a module within the model, not the model."""
    with torch.no_grad():
        step.model.bert(input_ids=batch["input_ids"].flip(1))
    return plain(step, batch)


def failing(step: Any, batch: dict[str, Tensor]) -> Tensor:
    """A call that does not count ends with an error, and the user goes on."""

    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    handle = step.model.bert.encoder.layer[1].register_forward_pre_hook(stop)
    with torch.no_grad(), contextlib.suppress(Stop):
        step.model(**shuffled(batch))
    handle.remove()
    return plain(step, batch)


def captured(step: Any, batch: dict[str, Tensor]) -> Tensor:
    """A CUDA graph is captured: what an observer adds would be part of every replay."""
    with pytest.MonkeyPatch.context() as patch, _Operations() as operations:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        loss = step.model(**shuffled(batch)).loss
    step.captured = [*getattr(step, "captured", ()), *operations.names]
    return loss  # type: ignore[no-any-return]


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("source", ["batch", "probe"])
def test_nothing_is_added_to_a_graph_that_is_captured(source: str, tmp_path: Path) -> None:
    def run(*callbacks: GeometryMonitor) -> list[str]:
        module = Steps(lambda: bert(dropout=0.0), lambda step, x: captured(step, x) + plain(step, x))
        fit(tmp_path, module, *callbacks, data=loader(8, 4), steps=2)
        return module.captured  # type: ignore[no-any-return]

    monitor = GeometryMonitor(1, source=source, metrics="entropy", probe_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = run(monitor)
    assert watched == run()
    assert len([w for w in caught if "CUDA graph" in str(w.message)]) == (source == "batch")
    record = monitor.last_record
    assert record is not None
    assert np.isfinite(record["entropy"]).all()
    layers = len(record["entropy"])
    assert record.coverage["measured"] == layers
    assert record.coverage["seen"] == layers + (source == "batch")


@pytest.mark.parametrize("compute", [no_grad_before, no_grad_after, inference_mode, parts_alone, failing])
@pytest.mark.parametrize("manual", [False, True])
def test_a_pass_without_gradient_does_not_count(compute: Loss, manual: bool, tmp_path: Path) -> None:
    module = Steps(lambda: bert(dropout=0.0), compute, manual=manual)
    before = copy.deepcopy(module.model)
    record = sample(tmp_path, module)
    assert_is_that_of(before, record)
    if not manual:
        np.testing.assert_allclose(
            record["importance"],
            measure(before, BATCH, metrics="importance", special_token_ids=[1])["importance"],
            rtol=1e-5,
        )


@pytest.fixture
def one_process() -> Iterator[None]:
    """Leaves no process group and no variable of its address behind."""
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        del os.environ[name]
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_step_that_a_strategy_calls_through_its_wrapper(tmp_path: Path) -> None:
    """Under DDP the whole training step runs inside of a call of the LightningModule."""
    module = Steps(lambda: bert(dropout=0.0), no_grad_before)
    before = copy.deepcopy(module.model)
    record = sample(tmp_path, module, strategy="ddp", devices=1, use_distributed_sampler=False)
    assert list(record.model["stacks"]) == ["bert.encoder"]
    assert_is_that_of(before, record)


def test_two_passes_with_gradient_both_count(tmp_path: Path) -> None:
    module = Steps(lambda: bert(dropout=0.0), lambda s, b: plain(s, b) + plain(s, shuffled(b)))
    before = copy.deepcopy(module.model)
    found = sample(tmp_path, module)["entropy"]
    both = [measure(before, b, metrics=["entropy"])["entropy"] for b in (BATCH, shuffled(BATCH))]
    np.testing.assert_allclose(found, (both[0] + both[1]) / 2, atol=1e-5)


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


@pytest.mark.parametrize("compiled", [False, True])
def test_where_no_call_counts_the_reason_is_said(compiled: bool, tmp_path: Path) -> None:
    class Teacher(Lit):
        def loss(self, batch: dict[str, Tensor]) -> Tensor:
            with torch.no_grad():
                logits = self.model(**batch).logits
            return self.end(logits).square().mean()  # type: ignore[no-any-return]

    module = Teacher(lambda: bert(dropout=0.0))
    module.end = nn.Linear(2, 1)
    if compiled:
        module.model.compile(backend="eager")
    monitor = GeometryMonitor(100, source="batch")
    with pytest.warns(UserWarning, match="Every call of the model ran under `no_grad`"):
        fit(tmp_path, module, monitor, data=loader(8, 4), steps=1)
    assert monitor.last_record is None


def test_what_begins_training() -> None:
    assert begins_training()
    with torch.no_grad():
        assert not begins_training()
    with torch.inference_mode():
        assert not begins_training()
    found = []

    def note(x: Tensor) -> Tensor:
        found.append(begins_training())
        return x * 2

    x = torch.ones(2, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for given in (x, x.detach()):
            checkpoint(note, given, use_reentrant=True)
    assert found == [True, False]
