"""What a user does with runs, done on one side: with monitors, or without."""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
import signal
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import nn

from lightning_geo import GeometryMonitor
from run_machine.acts import Acts
from run_machine.descriptions import Batches, Model
from run_machine.failures import Failing, Failure, InjectedError, fault
from run_machine.generators import generator_states, seeded_states, set_generator_states
from run_machine.loggers import LOGGERS
from run_machine.models import Module, loader
from run_machine.operations import Begin, Fit
from run_machine.sessions import Ends, Session, Snapshots, Witness, snapshot, snapshot_of_model, steps_of
from support.lit import trainer
from support.outside import finished

__all__ = ["Run", "Side", "copied"]


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
        self._generators = seeded_states(7 + rank)

    # -- operations

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """This side's generators, and what its monitors say."""
        set_generator_states(self._generators)
        handler = signal.getsignal(signal.SIGINT)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C once it was interrupted
            self._generators = generator_states()
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
        session.step = steps_of(run.trainer, run.module)
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


def _without_versions(text: str) -> str:
    """Without versions of tensors: writes that a replay in place takes back count too."""
    return re.sub(r"version \d+", "version N", text)


def _step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])
