"""All that training made is the same with monitors and without."""

from __future__ import annotations

import collections
import random
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_geo import GeometryMonitor
from run_machine.logged import logged, users
from run_machine.runs import Side

__all__ = ["check_same", "same"]

#: Attributes of modules that differ from side to side by their nature.
_OWN = ("_trainer", "_fabric", "failure", "source", "seen")


def check_same(watched: Side, twin: Side) -> None:
    """All that training made is the same on both sides."""
    same(watched.result, twin.result, "result")
    assert watched.runs.keys() == twin.runs.keys()
    for number, ours in watched.runs.items():  # first, as it says why all else differs
        errors = [[session.error for session in run.sessions] for run in (ours, twin.runs[number])]
        same(*errors, f"run {number}: errors")
    same(watched.generators, twin.generators, "generators")
    for number, ours in watched.runs.items():
        theirs, where = twin.runs[number], f"run {number}"
        same(ours.module, theirs.module, f"{where}: module")
        same(ours.copies, theirs.copies, f"{where}: copies of the model")
        same(_trained(ours.trainer), _trained(theirs.trainer), f"{where}: trainer")
        same(logged(ours), logged(theirs), f"{where}: logged")
        for mine, other in zip(ours.sessions, theirs.sessions, strict=True):
            for fact in ("error", "begun", "entered", "finished", "step"):
                same(getattr(mine, fact), getattr(other, fact), f"{where}: {fact}")
    for (ours_at, _), (theirs_at, _) in zip(watched.checkpoints, twin.checkpoints, strict=True):
        same(_checkpoint(ours_at), _checkpoint(theirs_at), f"{ours_at.name}")


def _trained(trainer: pl.Trainer) -> dict[str, Any]:
    return {
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "callback_metrics": users(trainer.callback_metrics),
        "logged_metrics": users(trainer.logged_metrics),
        "steps": (trainer.global_step, trainer.current_epoch, trainer.fit_loop._should_accumulate()),
        "status": (trainer.state.status, trainer.state.stage, trainer.should_stop),
        "progress": trainer.fit_loop.state_dict(),
        "callbacks": [type(c).__name__ for c in trainer.callbacks if not isinstance(c, GeometryMonitor)],  # type: ignore[attr-defined]
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    content["callbacks"] = {k: v for k, v in content["callbacks"].items() if "GeometryMonitor" not in k}
    return content


def same(ours: Any, theirs: Any, where: str, seen: dict[tuple[int, int], Any] | None = None) -> None:
    """Assert that two structures are equal, bit for bit."""
    seen = {} if seen is None else seen
    if (id(ours), id(theirs)) in seen:
        return
    seen[id(ours), id(theirs)] = ours, theirs  # kept, so that no other pair gets these numbers
    kinds = type(ours), type(theirs)  # parametrisation makes a class for each module
    assert kinds[0].__qualname__ == kinds[1].__qualname__, f"{where}: {kinds[0]} is not {kinds[1]}"
    if isinstance(ours, Tensor):
        assert ours.shape == theirs.shape, where
        assert ours.requires_grad == theirs.requires_grad, f"{where}: requires_grad"
        assert torch.equal(ours.nan_to_num(7e7), theirs.nan_to_num(7e7)), f"{where} differs"
        if ours.is_leaf:
            same(ours.grad, theirs.grad, f"{where}.grad", seen)
    elif isinstance(ours, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, err_msg=where)
    elif isinstance(ours, nn.Module):
        mine, others = ({k: v for k, v in vars(m).items() if k not in _OWN} for m in (ours, theirs))
        assert mine.keys() == others.keys(), f"{where}: {mine.keys() ^ others.keys()}"
        for name, value in mine.items():
            hooks = "_hooks" in name and isinstance(value, dict)
            pair = (list(value.values()), list(others[name].values())) if hooks else (value, others[name])
            same(*pair, f"{where}.{name}", seen)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs), f"{where}: {list(ours)} are not {list(theirs)}"
        for name, value in ours.items():
            same(value, theirs[name], f"{where}[{name!r}]", seen)
    elif isinstance(ours, (list, tuple, collections.deque)):
        assert len(ours) == len(theirs), f"{where}: {len(ours)} and {len(theirs)} items, {ours}"
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            same(*pair, f"{where}[{index}]", seen)
    elif isinstance(ours, torch.Generator):
        same(ours.get_state(), theirs.get_state(), where, seen)
    elif isinstance(ours, np.random.Generator):
        assert ours.bit_generator.state == theirs.bit_generator.state, where
    elif isinstance(ours, random.Random):
        assert ours.getstate() == theirs.getstate(), where
    elif isinstance(ours, float):
        assert ours == theirs or (ours != ours and theirs != theirs), f"{where}: {ours} is not {theirs}"
    elif isinstance(ours, (types.FunctionType, types.MethodType, type)):
        assert ours.__qualname__ == theirs.__qualname__, where
    elif type(ours).__eq__ is object.__eq__:
        same(vars(ours) if hasattr(ours, "__dict__") else {}, getattr(theirs, "__dict__", {}), where, seen)
    else:
        assert ours == theirs, f"{where}: {ours} is not {theirs}"
