"""Importance from training's own backward: what each sequence alone gives, and no hook stays."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from families.packaged import EVERY
from lightning_geo import GeometryMonitor, measure
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.training_importance import TrainingGradients
from lightning_geo.observe import Tap
from support.importance_runs import METRICS, Encoder, Manual, alone, checkpointed, run
from support.lit import Classifier, Lit, fit, sequences
from support.projections import CASES
from support.same import traces

OTHERS = [("swin", "sdpa"), ("swin", "eager"), ("packaged_bert", "sdpa")]


def of_rows(output: Any, *_: Any, **__: Any) -> Tensor:
    """A loss that every model has, the mean over sequences."""
    if isinstance(output, Tensor):
        first = output
    else:
        values = output.values() if hasattr(output, "values") else vars(output).values()
        first = next(value for value in values if isinstance(value, Tensor))
    rows = first.flatten(1)
    return (rows.pow(3).mean(1) + rows.square().sum(1)).mean()


def heard(model: nn.Module, batch: dict[str, Tensor], factor: float = 1.0) -> Measurement:
    """One forward and backward of a loss times ``factor``, with hooks on the gradients."""
    measurement, slopes = Measurement({"": Tap(model)}, ("importance",)), TrainingGradients()
    slopes.factor = factor
    slopes.begins((), batch)
    with measurement.observe("", slopes):
        output = model(**batch)
    (factor * of_rows(output)).backward()
    assert measurement.failures == []
    assert slopes.absences == {}
    measurement.add_importance(slopes.importances(), torch.device("cpu"))
    slopes.close()
    return measurement


@pytest.mark.parametrize(("name", "implementation"), [*CASES, *OTHERS])
def test_one_backward_of_a_batch_tells_what_each_sequence_alone_does(name: str, implementation: str) -> None:
    family = EVERY[name]
    model, batch = family.build(implementation), family.batch(family.paddings[-1])
    alone = measure(model, batch, metrics="importance", loss_fn=of_rows)
    together = heard(model, batch, 64.0).compute()
    assert set(alone.stacks) == set(together.stacks)
    for stack, arrays in alone.stacks.items():
        theirs = arrays["importance"]
        tolerance = 3e-7 * float(np.nanmax(theirs))
        np.testing.assert_allclose(together.stacks[stack]["importance"], theirs, rtol=3e-5, atol=tolerance)


# -- in a run


class Scaled(MixedPrecision):
    """A real loss scale without half precision, whose rounding would hide what is not undone."""

    def __init__(self, scale: float = 1024.0) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def forward_context(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 4),
        ({"accumulate_grad_batches": 2}, 8),
        ({"plugins": [Scaled()]}, 4),
        ({"plugins": [Scaled()], "accumulate_grad_batches": 2}, 8),
        ({"gradient_clip_val": 1e-3}, 4),
        ({"data": DataLoader(sequences(7), 4), "accumulate_grad_batches": 2}, 7),  # type: ignore[arg-type]
    ],
    ids=["plain", "accumulation", "scaler", "scaler, accumulation", "clipping", "batches of two sizes"],
)
def test_what_scales_the_loss_is_undone(options: dict[str, Any], count: int, tmp_path: Path) -> None:
    module = Classifier(dropout=0.0)
    before = copy.deepcopy(module.model)
    ours, said = run(tmp_path, module, **options)
    assert said == []
    np.testing.assert_allclose(ours, alone(before, count), rtol=3e-6)


def half(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_half_precision_with_its_loss_scale(tmp_path: Path) -> None:
    module = Classifier(dropout=0.0)
    before = copy.deepcopy(module.model)
    ours, said = run(tmp_path, module, plugins=[half(1024.0)])
    assert said == []
    theirs = alone(before)
    # float16 has steps of 1e-3: ten times what was seen of gradients that pass through two layers
    np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=0.002 * theirs.max())


def test_a_scale_too_large_gives_no_number(tmp_path: Path) -> None:
    ours, said = run(tmp_path, Classifier(dropout=0.0), plugins=[half(2.0**60)])
    assert ours is None
    assert len(said) == 1
    assert "importance is absent: no head changes the loss of a sequence, or its gradient is not" in said[0]


@pytest.mark.parametrize(
    "build",
    [
        lambda: Classifier(dropout=0.0),
        lambda: Lit(lambda: checkpointed(False)),
        lambda: Manual(lambda module, loss: module.manual_backward(loss)),
        lambda: Manual(lambda module, loss: (3.0 * loss).backward()),  # type: ignore[no-untyped-call]
    ],
    ids=["plain", "checkpointing", "manual", "a backward of one's own"],
)
def test_ways_to_train_that_give_the_same(build: Callable[[], Lit], tmp_path: Path) -> None:
    module = build()
    before = copy.deepcopy(module.model)
    ours, said = run(tmp_path, module)
    assert said == []
    np.testing.assert_allclose(ours, alone(before), rtol=3e-6)


@pytest.mark.parametrize("own", [True, False])
def test_attention_of_ones_own_and_torchs(own: bool, tmp_path: Path) -> None:
    module = Lit(lambda: Encoder(0.0, own=own, change=False))
    before = copy.deepcopy(module.model)
    ours, said = run(tmp_path, module)
    assert said == []
    np.testing.assert_allclose(ours, alone(before), rtol=2e-6)


def test_it_has_its_own_clock(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, source="batch", metrics=METRICS, importance_every_n_samples=3, strict=True)
    seen: list[int] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            record = monitor.last_record
            assert record is not None
            seen.extend([record.step] * ("importance" in record))

    fit(tmp_path, Classifier(), monitor, Note(), steps=5)
    assert seen == [0, 3]


# -- hooks


def hooks(module: Lit) -> list[Any]:
    layers = module.model.layers  # type: ignore[union-attr]
    return [hook for layer in layers for hook in (layer.kept._backward_hooks or {}).values()]


class Failing(Lit):
    """Fails in one phase of its third step, when hooks are in place."""

    def __init__(self, phase: str) -> None:
        super().__init__(lambda: Encoder(0.0, own=True, change=False))
        self.phase, self.found = phase, 0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.found = len(hooks(self))
        if batch_idx == 2 and self.phase == "forward":
            raise ArithmeticError("an unlucky number")
        return loss

    def on_after_backward(self) -> None:
        if self.phase == "backward" and self.global_step == 2:
            raise ArithmeticError("an unlucky number")


@pytest.mark.parametrize("phase", ["none", "forward", "backward"])
def test_no_hook_stays(phase: str, tmp_path: Path) -> None:
    module = Failing(phase)
    monitor = GeometryMonitor(1, source="batch", metrics=METRICS, importance_every_n_samples=1)
    if phase == "none":
        fit(tmp_path, module, monitor, steps=3)
    else:
        with pytest.raises(ArithmeticError):
            fit(tmp_path, module, monitor, steps=3)
    assert module.found == 2  # one in each layer while the step ran
    assert hooks(module) == []
    assert traces(module) == []
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is TrainingGradients and x._gradients]
