"""Copies of the model and of the monitor that a user makes in a run."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch import Tensor, nn

from lightning_geo import GeometryMonitor
from support.small_nets import Lit, Net, fit


class Teacher(Lit):
    def on_train_start(self) -> None:
        self.teacher = copy.deepcopy(self.net)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.teacher(batch[0]).detach().mean()


def test_a_copy_made_in_the_run_has_no_hook_and_can_be_pickled(tmp_path: Path) -> None:
    lit = Teacher(Net)
    fit(tmp_path, lit, GeometryMonitor(1, metrics=["entropy"]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lit.teacher.modules())
    pickle.dumps(lit.teacher)


class TeacherOfAStep(Lit):
    """Copies the model while it is observed."""

    teachers: tuple[nn.Module, ...] = ()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.teachers = (copy.deepcopy(self.net),)
        return super().training_step(batch, batch_idx) + self.teachers[0](batch[0]).detach().mean()


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_copy_made_in_a_step_keeps_no_stand_in_of_a_hook(source: str, tmp_path: Path) -> None:
    """Not even on its lists of modules, which are never called."""
    lit = TeacherOfAStep(Net)
    fit(tmp_path, lit, GeometryMonitor(1, source=source, metrics=["entropy"]))
    (teacher,) = lit.teachers
    assert any(isinstance(m, nn.ModuleList) for m in teacher.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


class Copies(pl.Callback):
    """Copies and pickles the trainer and what it holds, in the middle of a step."""

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            copy.deepcopy(callback)
            pickle.dumps(callback)


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_monitor_can_be_copied_and_pickled_in_fit(source: str, tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, source=source, metrics=["entropy"])
    fit(tmp_path, Lit(Net), monitor, Copies())
    assert monitor.last_record is not None
