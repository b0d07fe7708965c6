"""What a user does with runs, done on one side: with monitors, or without."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import re
import signal
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from lightning_geo import GeometryMonitor
from lightning_geo.observe.replay.call_hooks import _take_off
from run_machine.failures import Failing, Failure, InjectedError, fault
from run_machine.models import WIDTH, Batches, Model, Module, loader
from run_machine.short import Short
from support.lit import trainer
from support.outside import finished

__all__ = ["LOGGERS", "Begin", "Fit", "Run", "Session", "Side", "Watch"]


@dataclass(frozen=True, repr=False)
class Watch(Short):
    """Description of a monitor."""

    every: int = 1
    source: str = "probe"
    metrics: tuple[str, ...] | None = ("entropy",)
    max_queries: int | None = None
    probe_size: int = 16
    probe_in_checkpoint: bool = True
    name: str = "geometry"

    def make(self) -> GeometryMonitor:
        """The monitor."""
        return GeometryMonitor(
            self.every, source=self.source, metrics=None if self.metrics is None else list(self.metrics),
            max_queries=self.max_queries, probe_size=self.probe_size, name=self.name,
            probe_in_checkpoint=self.probe_in_checkpoint, importance_every_n_samples=2,
        )  # type: ignore[arg-type]  # fmt: skip


@dataclass(frozen=True, repr=False)
class Begin(Short):
    """A new run.

    Args:
        seed: Of weights and data.
        loggers: Names in :data:`LOGGERS`.
        accumulate: Batches of an update.
        watches: Its monitors, unless it uses another run's.
        monitors_of: The run whose monitors it uses.
        copied: How these are copied first.
        monitors_first: Whether they come before the user's callback.
        validate_every: Batches between validations; None for the end of an epoch.
    """

    seed: int = 0
    loggers: tuple[str, ...] = ()
    accumulate: int = 1
    watches: tuple[Watch, ...] = (Watch(),)
    monitors_of: int | None = None
    copied: str | None = None
    monitors_first: bool = True
    validate_every: int | None = None
    sanity: int = 1


@dataclass(frozen=True, repr=False)
class Fit(Short):
    """One fit, or more of one.

    Args:
        steps: How many optimizer steps more, or epochs.
        epochs: Whether these are epochs.
        fails: Where the user's code fails, at the ``count``-th time.
        count: See there.
        interrupts: Whether it is Ctrl-C instead of an error.
        fault: What fails inside of the monitor from the ``fault_at``-th time on.
        fault_at: See there.
        acts: What a callback of the user's does once: copies, saves a checkpoint, or fits another run.
        acts_in: In which hook of that callback.
        acts_at: At which call of that hook.
        other: The run that is fitted within.
        finished: When the records of samples are made, see :func:`support.outside.finished`.
    """

    steps: int = 2
    epochs: bool = False
    fails: str = ""
    count: int = 0
    interrupts: bool = False
    fault: str | None = None
    fault_at: int = 0
    acts: str = ""
    acts_in: str = "on_before_backward"
    acts_at: int = 0
    other: int | None = None
    finished: str = "at once"


# -- loggers


class Memory(Logger):
    """Keeps what it gets, and has no directory."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """There are none."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((step, {name: float(value) for name, value in metrics.items()}))


class Homeless(Memory):
    """Fails when it is asked for its directory."""

    @property
    def log_dir(self) -> str:
        raise ConnectionError("the server is down")


class Down(Memory):
    """Refuses the monitor's numbers."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any("geometry" in name for name in metrics):
            raise ConnectionError("the server is down")
        super().log_metrics(metrics, step)


def _wandb(folder: Path) -> WandbLogger:
    """An offline run of W&B's, beside others; one in the same folder goes on with it."""
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True)
    own = "-".join(folder.parts[-3:])  # no two that are open may have the same
    options: dict[str, Any] = {"id": own, "reinit": "create_new", "settings": settings}
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(save_dir=folder, project="run_machine", offline=True, **options)


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "wandb": _wandb,
    "tensorboard": lambda folder: TensorBoardLogger(folder, "board", version=0),
    "csv": lambda folder: CSVLogger(folder, "csv", version=0),
    "memory": lambda folder: Memory(),
    "homeless": lambda folder: Homeless(),
    "down": lambda folder: Down(),
}


# -- what happened


@dataclass
class Session:
    """What one fit of a run did, as its callbacks saw it.

    Args:
        run: Number of the run.
        begun: Step at which training began; None where it did not.
        entered: Steps that a batch entered, each once.
        finished: Whether all callbacks had their ``on_train_end``.
        step: The step at its end.
        snapshots: By step, the weights and state that entered it.
        error: What it raised.
        started: When it began, in seconds of the wall clock.
    """

    run: int
    begun: int | None = None
    entered: list[int] = field(default_factory=list)
    finished: bool = False
    step: int = 0
    snapshots: dict[int, Module] = field(default_factory=dict)
    error: str = ""
    started: float = field(default_factory=time.time)


class Witness(pl.Callback):
    """Notes which steps a session entered."""

    session: Session | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.session is not None:
            self.session.begun = _steps(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        session, step = self.session, _steps(trainer, pl_module)
        if session is None or step in session.entered:
            return
        session.entered.append(step)


class Snapshots(pl.Callback):
    """Takes a snapshot of each step that a session entered, where monitors stand among the callbacks.

    Another callback may have called the model before they sample it.
    """

    def __init__(self, takes: bool) -> None:
        self.takes = takes
        self.session: Session | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        session, step = self.session, _steps(trainer, pl_module)
        if self.takes and session is not None and step not in session.snapshots:
            session.snapshots[step] = snapshot(pl_module)


class Ends(pl.Callback):
    """The last of the user's callbacks: notes that training ended."""

    session: Session | None = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.session is not None:
            self.session.finished = True


def snapshot(module: Module) -> Module:
    """A copy without a trainer; activations are detached."""
    memo = {**_uncopied(module), id(module._trainer): None, id(module._fabric): None}
    made: Module = copy.deepcopy(module, memo)
    made._trainer = None
    return made


def _uncopied(module: nn.Module) -> dict[int, Any]:
    """What ``deepcopy`` refuses to copy, and what is in its place."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Tensor) and item.grad_fn is not None:
                    memo[id(item)] = item.detach().clone()
                elif isinstance(item, types.GeneratorType):
                    memo[id(item)] = item
    return memo


class Acts(pl.Callback):
    """Does something once in a hook."""

    def __init__(self) -> None:
        self.action: Callable[[], None] | None = None
        self.hook, self.count = "", 0

    def act(self, hook: str) -> None:
        if hook != self.hook or self.action is None:
            return
        if self.count > 0:
            self.count -= 1
            return
        action, self.action = self.action, None
        action()


#: Hooks in which the user's callback acts.
ACTS_IN = (
    "on_train_start", "on_train_batch_start", "on_before_backward", "on_after_backward",
    "on_before_zero_grad", "on_train_batch_end", "on_validation_batch_end", "on_train_epoch_end",
)  # fmt: skip


def _acting(name: str) -> Callable[..., None]:
    def hook(self: Acts, *args: Any, **kwargs: Any) -> None:
        self.act(name)

    return hook


for _name in ACTS_IN:
    setattr(Acts, _name, _acting(_name))


# -- runs


@dataclass
class Run:
    """A Trainer, what it trains, and where."""

    number: int
    begin: Begin
    folder: Path
    module: Module
    trainer: pl.Trainer
    monitors: list[GeometryMonitor]
    failing: Failing
    acts: Acts
    witness: Witness
    snapshots: Snapshots
    ends: Ends
    checkpoint: Path | None = None
    sessions: list[Session] = field(default_factory=list)
    #: what copies were made of the model in its fits
    copies: list[nn.Module] = field(default_factory=list)

    @property
    def places(self) -> list[Path]:
        """Directories of the loggers that have one, TensorBoard's first and W&B's next."""
        folders = {"tensorboard": "board/version_0", "wandb": "wandb", "csv": "csv/version_0"}
        return [self.folder / where for kind, where in folders.items() if kind in self.begin.loggers]

    @property
    def online(self) -> Any:
        """The open run of W&B's; None where there is none."""
        loggers = (logger for logger in self.trainer.loggers if isinstance(logger, WandbLogger))
        experiment = next((logger._experiment for logger in loggers), None)
        return experiment if hasattr(experiment, "finish") else None  # on other ranks there is a dummy


class Side:
    """Runs with monitors, or the same runs without.

    Args:
        root: Where they write.
        model: Of all runs.
        batches: Of all runs; seeds differ.
        watched: Whether there are monitors.
        tamper: Spoils each monitor that is made: for tests of the checks.
        options: More arguments of every Trainer.
        rank: Of this process: its batches are its own.
    """

    def __init__(
        self,
        root: Path,
        model: Model,
        batches: Batches,
        *,
        watched: bool,
        tamper: Callable[[GeometryMonitor], object] = lambda monitor: None,
        options: Callable[[], dict[str, Any]] = dict,
        rank: int = 0,
    ) -> None:
        self.root, self.model, self.batches, self.watched = root, model, batches, watched
        self.tamper, self.options, self.rank = tamper, options, rank
        self.runs: dict[int, Run] = {}
        self.checkpoints: list[tuple[Path, int]] = []
        #: what monitors said, in order
        self.said: list[str] = []
        #: of runs that were forgotten
        self.forgotten: list[weakref.ref[Any]] = []
        #: by run that was forgotten, the directory of its run of W&B's
        self.finished: dict[int, Path] = {}
        #: what the last operation returned
        self.result: Any = None
        self.count = 0
        self._generators = _seeded(7 + rank)

    # -- operations

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """This side's generators, and what its monitors say."""
        _set_generators(self._generators)
        handler = signal.getsignal(signal.SIGINT)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C once it was interrupted
            self._generators = _generators()
            self.said += [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]

    @property
    def generators(self) -> tuple[Any, ...]:
        """States of the global generators after the last operation."""
        return self._generators

    def begin(self, begin: Begin) -> Run:
        """Make a LightningModule and its Trainer."""
        number = self.count
        self.count += 1
        module = Module(self.model, begin.seed)
        return self._trainer(number, begin, self.root / f"run_{number}", module, self._monitors(begin))

    def _monitors(self, begin: Begin) -> list[GeometryMonitor]:
        if not self.watched:
            return []
        if begin.monitors_of is None:
            monitors = [watch.make() for watch in begin.watches]
            for monitor in monitors:
                self.tamper(monitor)
            return monitors
        monitors = self.runs[begin.monitors_of].monitors
        return monitors if begin.copied is None else [copied(m, begin.copied) for m in monitors]

    def _trainer(
        self, number: int, begin: Begin, folder: Path, module: Module, monitors: list[GeometryMonitor]
    ) -> Run:
        failing, acts, witness, ends = Failing(), Acts(), Witness(), Ends()
        snapshots = Snapshots(not self.watched)
        here = [snapshots, *monitors]
        callbacks = [*here, failing, acts] if begin.monitors_first else [failing, acts, *here]
        options = self.options()
        if not self.model.manual:
            options["accumulate_grad_batches"] = begin.accumulate
        if begin.validate_every is not None and self.batches.validation:
            options["val_check_interval"] = min(begin.validate_every, len(self.batches.lengths))
        made = trainer(
            folder, witness, *callbacks, ends, steps=0, num_sanity_val_steps=begin.sanity,
            logger=[LOGGERS[name](folder) for name in begin.loggers] or False, **options,
        )  # fmt: skip
        run = Run(number, begin, folder, module, made, monitors, failing, acts, witness, snapshots, ends)
        self.runs[number] = run
        return run

    def data(self, run: Run) -> dict[str, Any]:
        """What a run trains and validates on."""
        batches = self.batches.make(run.begin.seed + 100 * self.rank)
        training = loader(batches, shuffle=self.batches.shuffle)
        count = self.batches.validation
        return {"train_dataloaders": training, "val_dataloaders": loader(batches[:count]) if count else None}

    def fit(self, number: int, fit: Fit) -> Session:
        """Train on; what it raises is in the session."""
        run = self.runs[number]
        session = Session(number)
        run.sessions.append(session)
        kind = KeyboardInterrupt if fit.interrupts else InjectedError
        run.module.failure = run.failing.failure = Failure(fit.fails, fit.count, kind)
        run.acts.action, run.acts.hook, run.acts.count = self._action(run, fit), fit.acts_in, fit.acts_at
        run.witness.session = run.snapshots.session = run.ends.session = session
        loop = run.trainer.fit_loop
        if fit.epochs:
            loop.epoch_loop.max_steps, loop.max_epochs = -1, run.trainer.current_epoch + min(fit.steps, 2)
        else:
            taken = run.trainer.global_step if run.checkpoint is None else _step_of(run.checkpoint)
            loop.epoch_loop.max_steps, loop.max_epochs = taken + fit.steps, -1
        checkpoint, run.checkpoint = run.checkpoint, None
        try:
            with fault(fit.fault if self.watched else None, fit.fault_at), finished(fit.finished):
                run.trainer.fit(run.module, **self.data(run), ckpt_path=checkpoint)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            session.error = _without_versions(f"{type(error).__name__}: {error}")
            # autograd keeps a graph whose backward pass failed until the next one
            torch.zeros((), requires_grad=True).clone().backward()
        finally:
            run.module.failure = run.failing.failure = Failure()
            run.acts.action = None
        session.step = _steps(run.trainer, run.module)
        if run.snapshots.takes:
            session.snapshots.setdefault(session.step, snapshot(run.module))
        return session

    def _action(self, run: Run, fit: Fit) -> Callable[[], None] | None:
        def copies() -> None:
            run.copies.append(snapshot_of_model(run.module))
            for monitor in run.monitors:
                copied(monitor, fit.acts)

        def saves() -> None:
            self.save(run.number)

        def nests() -> None:
            if fit.other in self.runs and fit.other != run.number:
                self.fit(fit.other, Fit(steps=1))

        def validates() -> None:
            run.module.eval()
            with torch.no_grad():
                run.module.loss(self.batches.make(run.begin.seed)[0])
            run.module.train()

        actions = {"copy": copies, "pickle": copies, "save": saves, "nest": nests, "evaluate": validates}
        return actions.get(fit.acts)

    def loop(self, number: int, kind: str) -> None:
        """Validate, test or predict."""
        run = self.runs[number]
        batches = loader(self.batches.make(run.begin.seed)[:2])
        try:
            getattr(run.trainer, kind)(run.module, batches, **{"verbose": False} if kind != "predict" else {})
            self.result = ""
        except Exception as error:
            self.result = f"{type(error).__name__}: {error}"

    def save(self, number: int) -> None:
        """Write a checkpoint."""
        run = self.runs[number]
        path = self.root / f"checkpoint_{len(self.checkpoints)}.ckpt"
        run.trainer.save_checkpoint(path)
        self.checkpoints.append((path, number))

    def resume(self, checkpoint: int, begin: Begin, elsewhere: bool) -> Run | None:
        """A new Trainer that goes on from a checkpoint at its first fit."""
        path, origin = self.checkpoints[checkpoint % len(self.checkpoints)]
        number = self.count
        self.count += 1
        folder = self.root / (f"run_{number}" if elsewhere else self._folder_of(origin))
        for earlier in self.runs.values():
            if earlier.folder == folder:
                self._finish(earlier)
        run = self._trainer(number, begin, folder, Module(self.model, begin.seed + 50), self._monitors(begin))
        run.checkpoint = path
        return run

    def _folder_of(self, origin: int) -> str:
        known = self.runs.get(origin)
        return f"run_{origin}" if known is None else known.folder.name

    def copy(self, number: int, how: str) -> None:
        """Copy the model and the monitors of a run that is not fitting, and run the copy."""
        run = self.runs[number]
        for monitor in run.monitors:
            copied(monitor, how)
        made = snapshot_of_model(run.module)
        run.copies.append(made)

    def forget(self, number: int) -> None:
        """Let a run go; monitors live on in runs that share them."""
        run = self.runs.pop(number)
        self._finish(run)
        self.forgotten += [weakref.ref(run.trainer), weakref.ref(run.module)]
        self.forgotten += [weakref.ref(p) for p in run.module.parameters()]

    def close(self) -> None:
        """End what outlives this process's objects."""
        for run in self.runs.values():
            self._finish(run)

    def _finish(self, run: Run) -> None:
        if (online := run.online) is not None and run.number not in self.finished:
            self.finished[run.number] = Path(online.dir).parent
            online.finish()


def copied(monitor: GeometryMonitor, how: str) -> GeometryMonitor:
    """A copy of a monitor, through pickle or not."""
    return pickle.loads(pickle.dumps(monitor)) if how == "pickle" else copy.deepcopy(monitor)


def snapshot_of_model(module: Module) -> nn.Module:
    """A copy of what is in the LightningModule, as a user makes a teacher of it, which has run once."""
    inner = module.net if hasattr(module, "net") else module.encoder
    made: nn.Module = copy.deepcopy(inner, _uncopied(inner))
    mask = torch.ones(1, 3, dtype=torch.bool)
    given = mask.long() if hasattr(inner, "embed") else torch.ones(1, 3, WIDTH)
    with torch.no_grad():
        made(given, mask)
    for part in made.modules():
        _take_off(part)  # of what never runs, such as the last layer of `nn.MultiheadAttention`
    return made


def _without_versions(text: str) -> str:
    """Without versions of tensors: writes that a replay in place takes back count too."""
    return re.sub(r"version \d+", "version N", text)


def _steps(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """Optimizer steps so far; in manual optimization batches: one that failed may have stepped before."""
    if module.automatic_optimization:
        return int(trainer.global_step)
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)


def _step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


# -- generators


def _generators() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_generators(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def _seeded(seed: int) -> tuple[Any, ...]:
    before = _generators()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    states = _generators()
    _set_generators(before)
    return states
