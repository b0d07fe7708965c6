"""Samples that are finished outside the training thread give the records of those that are waited for.

On a CPU samples are finished in the training thread: :func:`support.outside.finished` forces the other path.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lightning_geo import GeometryHistory, GeometryMonitor, load_history
from lightning_geo.measurement.assemble import SampleDerivation
from support.lit import Classifier, fit, loader, trainer
from support.outside import finished
from support.same import assert_same, outcome

#: What differs between two runs of the same.
TIMES = ("cost", "elapsed")


class Looks(Callback):
    """Notes what a user may read, where it promises to be right; stands before the monitor."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, trainer: pl.Trainer, place: str) -> None:
        metrics = {k: v.item() for k, v in trainer.callback_metrics.items() if "geometry" in k}
        self.seen.append((place, trainer.global_step, metrics))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.note(trainer, "validation")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        for key, state in checkpoint["callbacks"].items():
            if "GeometryMonitor" in key:
                kept = {k: v for k, v in state.items() if k not in TIMES}
                self.seen.append((trainer.global_step, copy.deepcopy(kept)))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.note(trainer, "end")


class StopError(Exception):
    """A user's."""


class Stops(Callback):
    """Raises at a step."""

    def __init__(self, step: int, hook: str) -> None:
        self.step = step
        setattr(self, hook, self.act)

    def act(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise StopError


def history_of(directory: Path) -> GeometryHistory:
    return load_history(directory / "lightning_geo" / "version_0")


def flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested containers."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from flat(item, f"{where}/{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flat(item, f"{where}/{index}")
    else:
        yield where, value


def assert_equal(ours: Any, theirs: Any) -> None:
    ours, theirs = dict(flat(ours)), dict(flat(theirs))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, Tensor):
            assert torch.equal(value.nan_to_num(7.0), theirs[name].nan_to_num(7.0)), name
        else:
            np.testing.assert_equal(value, theirs[name], err_msg=name)


def assert_histories_equal(ours: GeometryHistory, theirs: GeometryHistory) -> None:
    assert ours.steps.tolist() == theirs.steps.tolist()
    for index in range(len(ours)):
        mine, other = ours.record(index), theirs.record(index)
        assert_equal((mine.stacks, mine.matrices), (other.stacks, other.matrices))
        for name in ("step", "epoch", "batches_seen", "probe_fingerprint", "coverage", "model"):
            assert getattr(mine, name) == getattr(other, name), name


def train(directory: Path, when: str, *, stop: int | None = None, hook: str = "", **options: Any) -> Any:
    """Train, and save at the end; what a user saw, what training made, and the history."""
    threads, module, looks = threading.active_count(), Classifier(), Looks()
    saves = ModelCheckpoint(directory / "saved", every_n_train_steps=3, save_top_k=-1)
    stops = [] if stop is None else [Stops(stop, hook)]
    callbacks = [looks, GeometryMonitor(**options), *stops, saves]
    with finished(when):
        runner = trainer(directory, *callbacks, steps=7, val_check_interval=2, limit_val_batches=1,
                         enable_checkpointing=True)  # fmt: skip
        pl.seed_everything(1, verbose=False)
        with contextlib.suppress(StopError):
            runner.fit(module, loader(16), loader(4))
    assert threading.active_count() <= threads
    return looks.seen, outcome(runner, module), history_of(directory)


# no shrinking: each example trains twice
@pytest.mark.slow
@settings(max_examples=3, suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate))
@example(when="asked for", source="probe", every=1, stop=3, hook="on_train_batch_start")
@example(when="next", source="probe", every=1, stop=5, hook="on_validation_start")
@example(when="asked for", source="batch", every=3, stop=None, hook="")
@given(
    when=st.sampled_from(["next", "asked for"]),
    source=st.sampled_from(["probe", "batch"]),
    every=st.integers(1, 4),
    stop=st.sampled_from([None, None, 3, 5]),
    hook=st.sampled_from(["on_train_batch_start", "on_before_zero_grad", "on_validation_start"]),
)
def test_nothing_differs_where_it_is_read(
    when: str, source: Any, every: int, stop: int | None, hook: str, tmp_path_factory: Any
) -> None:
    paths = [tmp_path_factory.mktemp("run") for _ in range(2)]
    metrics = ["entropy", "subspace", "head", "weights"]
    ours, theirs = (
        train(path, mode, every_n_steps=every, source=source, metrics=metrics, stop=stop, hook=hook)
        for path, mode in zip(paths, (when, "at once"), strict=True)
    )
    assert_equal(ours[0], theirs[0])
    assert_same(ours[1], theirs[1])
    assert_histories_equal(ours[2], theirs[2])


def test_numbers_do_not_depend_on_what_training_sets_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's half precision sets the default type of new tensors while a step runs."""
    finish = SampleDerivation.finish

    def meanwhile(self: SampleDerivation) -> Any:
        torch.set_default_dtype(torch.bfloat16)
        try:
            return finish(self)
        finally:
            torch.set_default_dtype(torch.float32)

    histories = []
    for path, function in ((tmp_path / "a", finish), (tmp_path / "b", meanwhile)):
        monkeypatch.setattr(SampleDerivation, "finish", function)
        with finished("asked for"):
            fit(path, Classifier(), GeometryMonitor(2), steps=3)
        histories.append(history_of(path))
    assert_histories_equal(*histories)
