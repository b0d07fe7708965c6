"""A replay leaves no trace, whatever a forward writes, and begins at the data."""

from __future__ import annotations

import collections
import copy
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_geo import GeometryMonitor, measure

WIDTH, TOKENS = 8, 5


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.layers = nn.ModuleList([Attention(), Attention()])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


class InDict(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stats = {"mean": torch.zeros(WIDTH)}

    def forward(self, ids: Tensor) -> Tensor:
        out = super().forward(ids)
        self.stats["mean"] += 0.1 * (out.detach().mean(0) - self.stats["mean"])
        return out - self.stats["mean"]


class InDeque(Net):
    def __init__(self) -> None:
        super().__init__()
        self.queue: collections.deque[Tensor] = collections.deque([torch.zeros(WIDTH)], maxlen=4)

    def forward(self, ids: Tensor) -> Tensor:
        out = super().forward(ids)
        rest = torch.stack(list(self.queue)).mean(0)
        self.queue.append(out.detach().mean(0))
        return out - 0.1 * rest


class Noise:
    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.python = random.Random(0)


class Draws(Net):
    """Draws from generators that lie in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise()

    def forward(self, ids: Tensor) -> Tensor:
        draw = torch.rand(WIDTH, generator=self.noise.torch)
        return super().forward(ids) * (draw + self.noise.numpy.random() + self.noise.python.random())


class Momentum(Net):
    """Writes parameters."""

    def __init__(self, *, anew: bool) -> None:
        super().__init__()
        self.anew = anew
        self.slow = copy.deepcopy(self.layers[0]).requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            for p, q in zip(self.slow.parameters(), self.layers[0].parameters(), strict=True):
                if self.anew:
                    p.data = p.data * 0.9 + q.data * 0.1
                else:
                    p.mul_(0.9).add_(q, alpha=0.1)
        return super().forward(ids) - 0.1 * self.slow(self.embed(ids)).mean(1)


class Locked(InDict):
    """Cannot be copied; counts in what is put back."""

    def __init__(self) -> None:
        super().__init__()
        self.file = (x for x in ())
        self.calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        return Net.forward(self, ids) * self.calls


class Lit(pl.LightningModule):
    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = build()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


IDS = torch.randint(0, 20, (32, TOKENS), generator=torch.Generator().manual_seed(0))


def fit(path: Path, lit: pl.LightningModule, *callbacks: pl.Callback) -> list[str]:
    """Train for four steps; returns what the monitor said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.Trainer(
            max_steps=4, callbacks=list(callbacks), default_root_dir=path, accelerator="cpu", logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        ).fit(lit, DataLoader(TensorDataset(IDS), batch_size=8))  # fmt: skip
    return [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


BUILDS: dict[str, Callable[[], nn.Module]] = {
    "dict": InDict,
    "deque": InDeque,
    "generators": Draws,
    "parameters in place": lambda: Momentum(anew=False),
    "parameters anew": lambda: Momentum(anew=True),
    "not to be copied": Locked,
}


@pytest.mark.parametrize("name", BUILDS)
def test_what_a_forward_writes_is_training_s_own(name: str, tmp_path: Path) -> None:
    alone, watched = Lit(BUILDS[name]), Lit(BUILDS[name])
    fit(tmp_path / "alone", alone)
    monitor = GeometryMonitor(1, metrics=["entropy"])
    said = fit(tmp_path / "watched", watched, monitor)
    assert same(alone, watched)
    assert monitor.last_record is not None
    assert any("cannot be copied" in line for line in said) is (name == "not to be copied")


class Features(Lit):
    """Its loss takes activations that hooks gather."""

    def __init__(self) -> None:
        super().__init__(Net)
        self.gathered: list[Tensor] = []
        self.seen: list[int] = []
        for layer in self.net.layers:  # type: ignore[union-attr]
            layer.register_forward_hook(lambda module, args, out: self.gathered.append(out.mean()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen.append(len(self.gathered))
        loss = loss + torch.stack(self.gathered).square().mean()
        self.gathered.clear()
        return loss


def test_the_user_s_hooks_do_not_run_in_replays_and_that_is_said(tmp_path: Path) -> None:
    alone, watched = Features(), Features()
    fit(tmp_path / "alone", alone)
    said = fit(tmp_path / "watched", watched, GeometryMonitor(1, metrics=["entropy"]))
    assert watched.seen == alone.seen
    assert same(alone, watched)
    assert any("forward hooks were left out of replays" in line for line in said)


class Logs(Lit):
    """Is observed itself, and logs in its forward."""

    def __init__(self) -> None:
        super().__init__(Net)
        self.other = Net()

    def forward(self, ids: Tensor) -> Tensor:
        out = self.net(ids) + self.other(ids)
        self.log("norm", out.norm(), on_step=False, on_epoch=True)
        return out

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - 1).square().mean()


def test_replays_log_nothing_and_the_last_sample_is_taken(tmp_path: Path) -> None:
    logged = []
    for watch in (False, True):
        lit, monitor = Logs(), GeometryMonitor(1, metrics=["entropy"])
        said = fit(tmp_path / str(watch), lit, *[monitor] * watch)
        logged.append(float(lit.trainer.callback_metrics["norm"]))
    assert logged[0] == logged[1]
    assert monitor.last_record is not None
    assert monitor.last_record.step == 4
    assert not any("dropped" in line for line in said)


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


class LogsLoss(Lit):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


class Metrics(pl.Callback):
    """Notes the user's metrics, as they are without a reader, in the hooks of a step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def _note(self, trainer: pl.Trainer, *_: Any) -> None:
        behind = trainer._logger_connector._callback_metrics
        self.seen.append({name: float(v) for name, v in behind.items() if "geometry" not in name})

    on_train_batch_start = on_before_backward = on_after_backward = _note  # type: ignore[assignment]
    on_before_optimizer_step = on_before_zero_grad = on_train_batch_end = _note  # type: ignore[assignment]


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_the_users_metrics_move_when_they_do_without_a_monitor(source: str, tmp_path: Path) -> None:
    seen = []
    for watch in (False, True):
        torch.manual_seed(0)
        metrics, monitor = Metrics(), GeometryMonitor(1, source=source, metrics=["entropy"])
        fit(tmp_path / str(watch), LogsLoss(Net), *[monitor] * watch, metrics)
        seen.append(metrics.seen)
        assert not watch or monitor.last_record is not None
    assert any(seen[0])
    assert seen[0] == seen[1]


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


class Split(Lit):
    """Embedding and encoder are its children: the encoder is given what depends on parameters."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Sequential(Attention(), Attention()))
        self.embed, self.drop = nn.Embedding(20, WIDTH), nn.Dropout(0.3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(self.drop(self.embed(ids)))  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - 1).square().mean()


class Stepwise(Split):
    """Its step does it all: its own forward is never called."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = (self.net(self.drop(self.embed(batch[0]))) - 1).square().mean()
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize("kind", [Split, Stepwise])
def test_a_replay_begins_at_the_data(kind: type[Split], tmp_path: Path) -> None:
    """The last sample is that of the final embeddings, without training's dropout."""
    lit, monitor = kind(), GeometryMonitor(1, metrics=["entropy"], probe_size=8)
    fit(tmp_path, lit, monitor)
    with torch.no_grad():
        expected = measure(lit.net.eval(), lit.embed(IDS[:8]), metrics=["entropy"])["entropy"]
    assert monitor.last_record is not None
    assert monitor.last_record.step == 4
    np.testing.assert_allclose(monitor.last_record["entropy"], expected, rtol=1e-5)


class Normed(Net):
    """Attends to what running statistics have normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(3 * self.embed(ids).transpose(1, 2) + 5).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


def test_the_first_sample_has_the_buffers_that_entered_its_step(tmp_path: Path) -> None:
    lit, first = Lit(Normed), []
    expected = measure(copy.deepcopy(lit.net).eval(), IDS[:8], metrics=["entropy"])["entropy"]
    monitor = GeometryMonitor(1, metrics=["entropy"], probe_size=8)

    class Keep(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            first.append(monitor.last_record)

    fit(tmp_path, lit, monitor, Keep())
    np.testing.assert_allclose(first[0]["entropy"], expected, rtol=1e-5)


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embed, self.replays = nn.Linear(WIDTH, WIDTH), nn.Embedding(20, WIDTH), 0

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.embed(ids)).mean(1)  # type: ignore[no-any-return]


def test_no_attention_is_given_up_after_a_few_samples(tmp_path: Path) -> None:
    said = fit(tmp_path, Lit(Nothing), GeometryMonitor(1, metrics=["entropy"]))
    assert any("no attention was seen in 3 samples" in line for line in said)
