"""What a user does with runs, drawn: training is as without a monitor, every sample is where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import run_state_machine_as_test
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from lightning_geo import GeometryMonitor
from lightning_geo.loggers.wandb import WandbSink
from run_machine.machine import RunMachine
from run_machine.models import Batches, Model
from run_machine.runs import Begin, Fit, Watch
from run_machine.two_ranks import Pair, Program, programs
from support.forks import Forks

pytestmark = pytest.mark.slow

_deep = settings.get_current_profile_name() == "deep"


def _settings(examples: int, **options: Any) -> settings:
    """Fixed examples in the usual run, as many as the profile ``deep`` asks for else."""
    return settings(
        max_examples=settings.default.max_examples if _deep else examples,
        derandomize=not _deep,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if _deep else (Phase.generate,),
        **options,
    )


def test_runs() -> None:
    run_state_machine_as_test(RunMachine, settings=_settings(20, stateful_step_count=20 if _deep else 10))


@pytest.fixture(scope="module", autouse=True)
def _quiet_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B writes below the tests' directory, sends nothing and says nothing."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SILENT": "true", "MODE": "offline"}.items():
            patch.setenv(f"WANDB_{name}", value)
        for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Pair]:
    """Two ranks for all programs."""
    ranks = Pair(tmp_path_factory.mktemp("ranks"), forks)
    yield ranks
    ranks.close()


@_settings(5)
@given(program=programs())
def test_runs_of_two_ranks(pair: Pair, program: Program) -> None:
    pair.run(program)


BATCHES = Batches(((7, 4, 6), (7, 5)), (False, False))
#: Exact beside estimates, in a run that goes on elsewhere and one that follows.
WATCHES = (Watch(), Watch(metrics=None, max_queries=3, name="geometry2"))
PROGRAM = Program(
    Model("split", parts=("draws", "plain")), BATCHES,
    Begin(loggers=("wandb", "tensorboard"), watches=WATCHES),
    (Fit(2), "save", "resume", Fit(2, finished="asked for"), "again", Fit(2, finished="next")),
)  # fmt: skip


def test_every_sample_of_two_ranks_is_in_wandb_and_right(pair: Pair) -> None:
    found = pair.run(PROGRAM)
    assert found["compared"] >= 2 * (3 + 2 + 3)
    assert found["compared"] == 2 * found["estimates"]
    assert found["rows of W&B"] >= found["compared"]


@pytest.mark.parametrize(
    ("plant", "found"),
    [("loses", "Not equal to tolerance"), ("misjudges", "is no standard error")],
)
def test_planted_faults_of_two_ranks_are_found(pair: Pair, plant: str, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        pair.run(replace(PROGRAM, plant=plant))


def test_every_sample_is_in_wandb_and_right() -> None:
    begin = Begin(loggers=("wandb",), watches=WATCHES)
    machine = _live(
        lambda machine: machine.start(model=Model("itself"), batches=BATCHES, begin=begin),
        lambda machine: machine.fit(0, Fit(2)),
        lambda machine: machine.save(0),
        lambda machine: machine.fit(0, Fit(2, fails="training_step", count=1)),
        lambda machine: machine.resume(0, begin, elsewhere=False, same=False, fit=Fit(2)),
        lambda machine: machine.forget(0),
    )
    assert machine.right > machine.estimates > 2
    assert machine.records.rows > 8


# -- what was once taken for a fault


def test_a_session_that_did_not_train_is_not_held_to_an_earlier_ones_samples() -> None:
    """It validated before it was interrupted, so that the model's state at the last step is another."""
    model, batches = Model(parts=("plain",)), Batches(((3, 4), (5,)), (False, False), validation=1)
    _live(
        lambda machine: machine.start(model=model, batches=batches, begin=Begin()),
        lambda machine: machine.fit(0, Fit(3)),
        lambda machine: machine.fit(0, Fit(fails="on_sanity_check_end", interrupts=True)),
    )


def test_another_callback_may_call_the_model_before_it_is_sampled() -> None:
    model, batches = Model(attention="by hand", parts=("plain",)), Batches(((2,), (2,)), (False, False))
    _live(
        lambda machine: machine.start(
            model=model, batches=batches, begin=Begin(monitors_first=False, sanity=0)
        ),
        lambda machine: machine.fit(0, Fit(1, acts="evaluate", acts_in="on_train_batch_start")),
    )


def _live(*operations: Callable[[RunMachine], None]) -> RunMachine:
    """Do these, and check after each."""
    machine = RunMachine()
    try:
        for operation in operations:
            operation(machine)
            machine.holds()
    finally:
        machine.teardown()
    assert machine.right > 0
    return machine


# -- the checks see what they look for


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
