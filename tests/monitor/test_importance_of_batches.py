"""``importance`` from training's own backward outside Lightning: the model's loss tells what scaled it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler, default_collate
from transformers import Trainer, TrainingArguments

from lightning_geo import GeometryCallback, GeometryRecord, measure, watch
from support.lit import bert, gpt2, sequences
from support.same import assert_same, traces

SETTINGS: dict[str, Any] = {
    "source": "batch", "metrics": ["importance", "metric:entropy"], "importance_every_n_samples": 1,
    "every_n_steps": 1, "strict": True,
}  # fmt: skip
#: Sequences of a batch.
BATCH = 4


def classified() -> list[dict[str, Tensor]]:
    return sequences(2 * BATCH)


def written() -> list[dict[str, Tensor]]:
    """Sequences of one length, whose first tokens are no labels."""
    ids = [row["input_ids"].clamp(min=2) for row in sequences(2 * BATCH)]
    return [{"input_ids": row, "labels": torch.cat([torch.tensor([-100]), row[1:]])} for row in ids]


def alone(model: nn.Module, rows: list[dict[str, Tensor]]) -> np.ndarray:
    """What each sequence says by itself."""
    return measure(model, default_collate(rows), metrics="importance")["importance"]


def importance(record: GeometryRecord | None) -> np.ndarray | None:
    assert record is not None
    assert np.isfinite(record["entropy"]).all()
    return {name: record[name] for name in record}.get("importance")


# -- a loop of one's own

Step = Callable[[nn.Module, list[Any]], None]


def usual(model: nn.Module, batches: list[Any]) -> None:
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()


def scaled(model: nn.Module, batches: list[Any]) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in batches:
        scaler.scale(model(**batch).loss / len(batches)).backward()


def from_logits(model: nn.Module, batches: list[Any]) -> None:
    for batch in batches:
        nn.functional.cross_entropy(model(**batch).logits, batch["labels"]).backward()


def twice(model: nn.Module, batches: list[Any]) -> None:
    for batch in batches:
        loss = model(**batch).loss
        loss.backward(retain_graph=True)
        loss.backward()


def without_labels(model: nn.Module, batches: list[Any]) -> None:
    for batch in batches:
        labels = batch["labels"]
        logits = model(**{name: x for name, x in batch.items() if name != "labels"}).logits
        nn.functional.cross_entropy(logits, labels).backward()


def frozen(model: nn.Module, batches: list[Any]) -> None:
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)  # type: ignore[union-attr]
    usual(model, batches)


def loop(
    directory: Path, step: Step, model: nn.Module, *, watched: bool = True
) -> tuple[np.ndarray | None, list[str]]:
    """The importance in one step, and what was said of it."""
    rows, optimizer = classified(), torch.optim.SGD(model.parameters(), 0.1)
    batches = [default_collate(rows[start : start + BATCH]) for start in (0, BATCH)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not watched:
            step(model, batches)
            optimizer.step()
            return None, []
        with watch(model, logdir=directory, **SETTINGS) as geometry:
            step(model, batches)
            optimizer.step()
            geometry.step()
            found = importance(geometry.last_record)
    return found, [str(w.message) for w in caught if "importance" in str(w.message)]


@pytest.mark.parametrize("step", [usual, scaled])
def test_what_a_loop_multiplies_the_loss_with_is_undone(step: Step, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert(dropout=0.0)
    before, twin = copy.deepcopy(model), copy.deepcopy(model)
    ours, said = loop(tmp_path, step, model)
    assert said == []
    np.testing.assert_allclose(ours, alone(before, classified()), rtol=3e-6)
    assert traces(model) == []
    loop(tmp_path, step, twin, watched=False)
    assert_same(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (from_logits, "did not begin from the `loss` that the model returns"),
        (without_labels, "did not begin from the `loss` that the model returns"),
        (twice, "several losses were differentiated through one forward"),
        (frozen, "the training gradient does not reach it"),
    ],
)
def test_what_cannot_be_known_in_a_loop_is_absent_and_said(step: Step, reason: str, tmp_path: Path) -> None:
    ours, said = loop(tmp_path, step, bert(dropout=0.0))
    assert ours is None
    assert len(said) == 1, said
    assert "importance is absent: " in said[0]
    assert reason in said[0]


# -- transformers.Trainer, which may have the model divide its loss by the labels of all batches of a step


class OwnLoss(nn.Module):
    """Divides its loss in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = gpt2(dropout=0.0)

    def forward(self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Any = None, **_: Any) -> Any:
        out = self.inner(input_ids=input_ids, labels=labels)
        out.loss = out.loss * 7.0 / (1 if num_items_in_batch is None else num_items_in_batch)
        return out


def train(directory: Path, model: nn.Module, rows: list[dict[str, Tensor]], **options: Any) -> Any:
    class InOrder(Trainer):
        def _get_train_sampler(self, *_: object) -> Any:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    given = {"gradient_accumulation_steps": 2, **options}
    arguments = TrainingArguments(
        str(directory), max_steps=1, per_device_train_batch_size=BATCH, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="no", **given,
    )  # fmt: skip
    callback = GeometryCallback(**SETTINGS)
    trainer = InOrder(model, arguments, train_dataset=rows, callbacks=[callback])  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    return importance(callback.last_record), [
        str(w.message) for w in caught if "importance" in str(w.message)
    ]


@pytest.mark.parametrize(
    ("build", "rows"),
    [(lambda: gpt2(dropout=0.0), written), (lambda: bert(dropout=0.0), classified)],
    ids=["divided by all labels", "a mean of its own"],
)
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1e-3}, {"gradient_accumulation_steps": 1}])
def test_what_a_trainer_makes_of_the_loss_is_undone(
    build: Callable[[], nn.Module], rows: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build()
    before = copy.deepcopy(model)
    ours, said = train(tmp_path, model, rows(), **options)
    assert said == []
    used = BATCH * options.get("gradient_accumulation_steps", 2)
    np.testing.assert_allclose(ours, alone(before, rows()[:used]), rtol=3e-6, atol=1e-9)
    assert traces(model) == []


def test_another_use_of_the_number_of_labels_is_absent_and_said(tmp_path: Path) -> None:
    ours, said = train(tmp_path, OwnLoss(), written())
    assert ours is None
    assert len(said) == 1, said
    assert "importance is absent: " in said[0]
    assert "how its loss uses `num_items_in_batch` is unknown" in said[0]
