"""Importance from training's own backward: what each sequence alone gives, and no hook stays."""

from __future__ import annotations

import copy
import gc
import warnings
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
from torch.utils.data import DataLoader, default_collate

from families.packaged import EVERY
from lightning_geo import GeometryMonitor, measure
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.training_importance import TrainingGradients
from lightning_geo.observe import Tap
from support.lit import Classifier, Lit, bert, fit, loader, sequences
from support.projections import CASES
from support.same import traces

METRICS = ["importance", "metric:entropy"]
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


class Manual(Lit):
    """One batch an update, optimized by hand; ``backward`` says how the loss is differentiated."""

    def __init__(self, backward: Callable[[Lit, Tensor], None]) -> None:
        super().__init__(lambda: bert(dropout=0.0), manual=True)
        self.differentiate = backward

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.differentiate(self, self.loss(batch))
        optimizer.step()


class FromLogits(Manual):
    """Its loss is not its model's."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.model(**batch).logits, batch["labels"])  # type: ignore[operator]


def twice(module: Lit, loss: Tensor) -> None:
    module.manual_backward(loss, retain_graph=True)
    module.manual_backward(0.5 * loss)


def checkpointed(reentrant: bool) -> nn.Module:
    model = bert(dropout=0.0)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def frozen_below() -> nn.Module:
    model = bert(dropout=0.0)
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    return model


def run(
    directory: Path, module: Lit, *, steps: int = 1, **options: Any
) -> tuple[np.ndarray | None, list[str]]:
    """The importance at the last sample, [layer, head], and what was said of it."""
    monitor = GeometryMonitor(
        1, source="batch", metrics=METRICS, importance_every_n_samples=1, strict=True, special_token_ids=[1]
    )
    before = traces(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(directory, module, monitor, steps=steps, **{"data": loader(8, 4), **options})
    said = [str(w.message) for w in caught if "importance" in str(w.message)]
    record = monitor.last_record
    assert record is not None
    assert np.isfinite(record["entropy"]).all()
    assert traces(module) == before
    return {name: record[name] for name in record}.get("importance"), said


def alone(model: nn.Module, count: int = 4) -> np.ndarray:
    """What each of the first sequences says by itself, on a probe."""
    return measure(model, default_collate(sequences(count)), metrics="importance")["importance"]


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


NO_GRADIENT = "the training gradient does not reach it"
ABSENT: dict[str, tuple[Callable[[], Lit], str]] = {
    "reentrant checkpointing": (lambda: Lit(lambda: checkpointed(True)), NO_GRADIENT),
    "frozen": (lambda: Frozen(), NO_GRADIENT),
    "two losses": (lambda: Manual(twice), "several losses were differentiated through one forward"),
    "a backward of one's own from another loss": (
        lambda: FromLogits(lambda module, loss: loss.backward()),
        "did not begin from the `loss` that the model returns",
    ),
    "no backward": (lambda: Idle(), "the training backward pass did not reach it"),
    "compiled": (lambda: Compiled(), "the model is compiled"),
    "hidden dropout": (lambda: Lit(lambda: Encoder(0.1)), "dropout cannot be repeated"),
    "in place": (lambda: Lit(lambda: Encoder(0.0, own=True)), "changes its heads' outputs in place"),
}  # fmt: skip


class Frozen(Lit):
    """Trains what comes after a frozen BERT."""

    def __init__(self) -> None:
        super().__init__(lambda: bert(dropout=0.0))
        self.model.bert.requires_grad_(False)  # type: ignore[union-attr]


class Idle(Lit):
    """A step that finds nothing to learn from."""

    def __init__(self) -> None:
        super().__init__(lambda: bert(dropout=0.0))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 2 else loss


class Compiled(Lit):
    def __init__(self) -> None:
        super().__init__(lambda: bert(dropout=0.0, layers=1))
        self.model.compile(backend="eager")


class OwnAttention(nn.Module):
    """Keeps what its attention gave, and may change it in place afterwards."""

    def __init__(self, change: bool) -> None:
        super().__init__()
        self.inner, self.out, self.change = nn.Linear(32, 96), nn.Linear(32, 32), change
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / 8**0.5).softmax(-1)
        self.kept = weights @ v
        if self.change:
            self.kept.mul_(2.0)
        return x + self.out(self.kept.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Layers whose attention is torch's own, or written by hand."""

    def __init__(self, dropout: float, own: bool = False, change: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(60, 32), nn.Linear(32, 2)
        layers = (
            OwnAttention(change) if own else nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True)
            for _ in range(2)
        )
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        loss = nn.functional.cross_entropy(self.head(x.mean(1)), labels)
        return type("Output", (), {"loss": loss})


@pytest.mark.parametrize("name", ABSENT)
def test_what_cannot_be_known_is_absent_and_said_once(name: str, tmp_path: Path) -> None:
    build, reason = ABSENT[name]
    ours, said = run(tmp_path, build(), steps=4, data=loader(16, 4))
    assert ours is None
    assert len(said) == 1, said
    assert "importance is absent: " in said[0]
    assert reason in said[0]


def test_layers_below_which_all_is_frozen_have_none(tmp_path: Path) -> None:
    module = Lit(frozen_below)
    before = copy.deepcopy(module.model)
    ours, said = run(tmp_path, module)
    assert ours is not None
    assert np.isnan(ours[0]).all()
    np.testing.assert_allclose(ours[1], alone(before)[1], rtol=3e-6)
    assert len(said) == 1
    assert f"importance is absent in part: in bert.encoder.layer.0.attention.self: {NO_GRADIENT}" in said[0]


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
