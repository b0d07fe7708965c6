"""Faults that are planted in a monitor are found: the checks see what they look for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from lightning_geo import GeometryMonitor
from lightning_geo.loggers.wandb import WandbSink
from run_machine.descriptions import Batches, Model
from run_machine.machine import RunMachine
from run_machine.operations import Begin, Fit, Watch

pytestmark = pytest.mark.slow


def draws(self: Any, trainer: Any, *_: Any) -> None:
    """Spoil training: draw from everybody's generator."""
    torch.rand(1)


def writes(self: Any, trainer: Any, *_: Any) -> None:
    """Spoil training: change a weight."""
    next(trainer.lightning_module.parameters()).data.mul_(1.001)


def hooks(self: Any, trainer: Any, *_: Any) -> None:
    """Leave a hook behind."""
    trainer.lightning_module.encoder.register_forward_hook(_idle)


def logs(self: Any, trainer: Any, *_: Any) -> None:
    """Change the user's metrics."""
    trainer.callback_metrics["planted"] = torch.tensor(7.0)


def opens(self: Any, trainer: Any, *_: Any) -> None:
    """Leave a file open."""
    Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
    _kept.append((Path(trainer.default_root_dir) / "open").open("w"))


def patches(self: Any, trainer: Any, *_: Any) -> None:
    """Leave a function replaced."""
    torch.nn.functional.silu = _idle  # type: ignore[assignment]


def keeps(self: Any, trainer: Any, *_: Any) -> None:
    """Keep tensors."""
    _kept.extend(torch.rand(2, generator=torch.Generator()) for _ in range(500))


def strays(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Write the record elsewhere."""
    stray = Path(trainer.default_root_dir).parent / "elsewhere"
    stray.mkdir(exist_ok=True)
    (stray / "events.out.tfevents.0.lightning_geo").write_bytes(b"")


def skips(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Lose a sample."""
    self._run.samples.sinks._sinks = []


def forgets(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Lose the sample whose record is not made yet."""
    self._run.samples.delivery._pending = None


def doubles(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Make the record of a sample twice."""
    delivery = self._run.samples.delivery
    pending = delivery._pending
    delivery.flush()
    delivery._pending = pending


def swaps(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Write the record of a sample after that of the next one."""
    sinks = self._run.samples.sinks
    write, held = sinks.write, []

    def late(record: Any, *, final: bool) -> None:
        held.insert(0, record)
        if len(held) == 2:
            for each in held:
                write(each, final=final)

    sinks.write = late  # type: ignore[method-assign]


def holds(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Keep the Trainer alive."""
    _kept.append(trainer)


def _logger(trainer: Any, kind: type[Logger]) -> Any:
    return next(logger.experiment for logger in trainer.loggers if isinstance(logger, kind))


def purges(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Void the user's scalars, as TensorBoard's own session mark does."""
    start = SessionLog(status=SessionLog.START)
    _logger(trainer, TensorBoardLogger)._get_file_writer().add_event(Event(session_log=start), step=0)


def charts(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Write among the user's scalars."""
    _logger(trainer, TensorBoardLogger).add_scalar("loss_step", 7.0, 1)


def uploads(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Write among the user's metrics in W&B."""
    _logger(trainer, WandbLogger).log({"loss_step": 7.0, "trainer/global_step": 1})


def renames(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Give a metric of the user's in W&B another axis."""
    _logger(trainer, WandbLogger).define_metric("loss_step", step_metric="epoch")


def withholds(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Leave a sample out of W&B, which the record has."""
    sinks = self._run.samples.sinks
    sinks._sinks = [sink for sink in sinks._sinks or [] if not isinstance(sink, WandbSink)]


def _spoils(self: GeometryMonitor, metric: str, factor: float) -> None:
    sinks = self._run.samples.sinks
    write = sinks.write

    def spoiled(record: Any, *, final: bool) -> None:
        for stack in record.stacks.values():
            stack[metric] = stack[metric] * factor
        write(record, final=final)

    sinks.write = spoiled  # type: ignore[method-assign]


def errs(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Record wrong entropies."""
    _spoils(self, "entropy", 1.001)


def misjudges(self: GeometryMonitor, trainer: Any, *_: Any) -> None:
    """Record wrong standard errors."""
    _spoils(self, "entropy.stderr", 10.0)


def _idle(*_: Any) -> None:
    return None


_kept: list[Any] = []


@pytest.fixture
def restored() -> Iterator[None]:
    """Nothing of a planted fault stays."""
    silu = torch.nn.functional.silu
    yield
    torch.nn.functional.silu = silu
    for item in _kept:
        if hasattr(item, "close"):
            item.close()
    _kept.clear()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (draws, "generators"),
        (writes, "differs"),
        (hooks, "_forward_hooks"),
        (logs, "callback_metrics"),
        (opens, "are open"),
        (patches, "silu was replaced"),
        (keeps, "tensors more"),
        (strays, "outside of the runs' places"),
        (skips, "missing"),
        (forgets, "missing"),
        (doubles, "in this order"),
        (swaps, "in this order"),
        (holds, "alive of runs"),
        # it voids records, too, if their file was opened a second before the logger's
        (purges, r"\['tensorboard'\]\['epoch'\]: 5 and 7 items|\{0\} are missing"),
        (charts, r"\['tensorboard'\]\['loss_step'\]"),
        (uploads, r"W&B\['rows'\]"),
        (renames, r"W&B\['metrics'\]"),
        (withholds, "W&B: .* are missing"),
        (errs, "Not equal to tolerance"),
        (misjudges, "is no standard error"),
    ],
)
def test_planted_faults_are_found(
    plant: Callable[..., None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = GeometryMonitor.on_train_batch_end

    def planted(self: GeometryMonitor, trainer: pl.Trainer, *args: Any, **options: Any) -> None:
        original(self, trainer, *args, **options)
        if trainer.global_step == (3 if plant in (forgets, doubles) else 2):  # a sample waits then
            plant(self, trainer)

    loggers = {
        purges: "tensorboard", charts: "tensorboard", uploads: "wandb", renames: "wandb", withholds: "wandb"
    }  # fmt: skip
    begin = Begin(
        loggers=(loggers[plant],) if plant in loggers else (),
        watches=(Watch(max_queries=3 if plant is misjudges else None),),
    )

    def lives() -> None:
        machine.start(
            model=Model("split", layers=1), batches=Batches(((3, 4), (5,)), (False, False)), begin=begin
        )
        machine.holds()
        machine.fit(0, Fit(1))
        machine.holds()
        monkeypatch.setattr(GeometryMonitor, "on_train_batch_end", planted)
        machine.fit(0, Fit(3, finished="asked for" if plant in (forgets, doubles) else "at once"))
        machine.holds()
        machine.forget(0)
        machine.holds()

    machine = RunMachine()
    try:
        with pytest.raises(AssertionError, match=found):
            lives()
    finally:
        machine.teardown()
