"""``source="batch"`` counts the calls that are part of training, and no others."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_geo import GeometryMonitor, measure
from lightning_geo.observe.training_calls import begins_training
from support.lit import Lit, bert, fit, loader
from support.training_steps import (
    BATCH,
    Loss,
    Steps,
    assert_is_that_of,
    no_grad_before,
    plain,
    sample,
    shuffled,
)


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
