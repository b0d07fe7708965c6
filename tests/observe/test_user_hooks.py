"""Hooks, logs and copies of the user's while a model is replayed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_geo import GeometryMonitor
from lightning_geo.observe.replay.call_hooks import _take_off
from support.lit import Classifier, Lit, bert, fit
from support.same import assert_same, outcome


class Features(Lit):
    """Adds the mean of features, gathered by hooks, to its loss."""

    def __init__(self, *, everywhere: bool = False) -> None:
        super().__init__(bert)
        self.features: list[Tensor] = []
        self.seen: list[int] = []
        self.everywhere = everywhere
        for layer in self.model.bert.encoder.layer:
            layer.register_forward_hook(self.gather)

    def gather(self, module: nn.Module, args: Any, output: Any) -> None:
        self.features.append(output[0] if isinstance(output, tuple) else output)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        loss = super().loss(batch)
        self.seen.append(len(self.features))
        loss = loss + sum(x.square().mean() for x in self.features)
        self.features.clear()
        return loss


def test_hooks_of_the_users_gather_no_replay(tmp_path: Path) -> None:
    plain, watched = Features(), Features()
    bare = outcome(fit(tmp_path / "bare", plain, steps=4), plain)
    with pytest.warns(UserWarning, match=r"hooks were left out of replays: bert.encoder.layer.0 \(Features"):
        ours = outcome(fit(tmp_path, watched, GeometryMonitor(1, special_token_ids=[1]), steps=4), watched)
    assert plain.seen == watched.seen == [2] * 4
    assert_same(ours, bare)


def test_hooks_for_all_modules_gather_no_replay(tmp_path: Path) -> None:
    seen: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    try:
        counts = []
        for monitors in ([], [GeometryMonitor(1, special_token_ids=[1])]):
            seen.clear()
            fit(tmp_path / str(len(monitors)), Classifier(), *monitors, steps=2)
            counts.append(len(seen))
    finally:
        hook.remove()
    assert counts[0] == counts[1] > 0


class Logs(Lit):
    """Logs in its own forward, and counts there."""

    def __init__(self) -> None:
        super().__init__(bert)
        self.other = bert()
        self.calls = 0

    def forward(self, **batch: Tensor) -> Any:
        loss = self.model(**batch).loss + self.other(**batch).loss
        self.calls += 1
        self.log("inside", loss, on_step=True, on_epoch=True)
        assert self.trainer.max_steps == 4
        return loss

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self(**batch)  # type: ignore[no-any-return]


def test_a_lightning_module_that_is_replayed_logs_nothing(tmp_path: Path) -> None:
    runs = []
    for monitors in ([], [GeometryMonitor(1, strict=True, special_token_ids=[1])]):
        module = Logs()
        runner = fit(tmp_path / str(len(monitors)), module, *monitors, steps=4)
        logged = {k: float(v) for k, v in runner.callback_metrics.items() if "geometry" not in k}
        runs.append((logged, module.calls, outcome(runner, module)))
    assert runs[0][:2] == runs[1][:2]
    assert "inside" in runs[0][0]
    assert_same(runs[1][2], runs[0][2])
    assert monitors[0].last_record.step == 4  # type: ignore[union-attr]


class Teacher(Classifier):
    """Copies its model when training starts, and in a step."""

    def on_train_start(self) -> None:
        self.before = copy.deepcopy(self.model)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        if not hasattr(self, "within"):
            self.within = copy.deepcopy(self.model)
        with torch.no_grad():
            self.before(**batch)
            self.within(**batch)
        return super().loss(batch)


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_copy_of_the_model_keeps_no_hook(source: Any, tmp_path: Path) -> None:
    module = Teacher()
    fit(tmp_path, module, GeometryMonitor(1, source=source, module="model"), steps=2)
    for made in (module.before, module.within):
        hooks = [
            h for m in made.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())
        ]
        # what takes itself off is left where the copy never ran
        assert set(hooks) <= {_take_off}
        assert hooks == [] or source == "batch"
        assert not made._forward_pre_hooks
        pickle.dumps(made)


@pytest.mark.parametrize("source", ["probe", "batch"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_monitor_can_be_copied_while_it_runs(
    how: Callable[[Any], Any], source: Any, tmp_path: Path
) -> None:
    copies: list[GeometryMonitor] = []

    class Copies(Classifier):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            copies.append(how(monitor))
            return super().training_step(batch, batch_idx)

    monitor = GeometryMonitor(1, source=source, special_token_ids=[1])
    fit(tmp_path / "ours", Copies(), monitor, steps=2)
    assert copies[1].last_record is not None
    assert len(copies) == 2
    fit(tmp_path / "theirs", Classifier(), copies[1], steps=2)
    assert copies[1].last_record.step == monitor.last_record.step  # type: ignore[union-attr]
