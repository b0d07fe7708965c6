"""Where training's own backward tells no importance, it is absent and said once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from support.importance_runs import Encoder, Manual, alone, checkpointed, run
from support.lit import Lit, bert, loader


class FromLogits(Manual):
    """Its loss is not its model's."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.model(**batch).logits, batch["labels"])  # type: ignore[operator]


def twice(module: Lit, loss: Tensor) -> None:
    module.manual_backward(loss, retain_graph=True)
    module.manual_backward(0.5 * loss)


def frozen_below() -> nn.Module:
    model = bert(dropout=0.0)
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    return model


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
