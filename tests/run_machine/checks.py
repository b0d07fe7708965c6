"""What has to hold after each operation."""

from __future__ import annotations

import collections
import gc
import random
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.storage.event_files import read_events
from lightning_geo.storage.events import parse_record
from lightning_geo.storage.places import place
from run_machine.logged import Finished, logged, users
from run_machine.models import Attention, Bert, Module
from run_machine.runs import Run, Session, Side, Watch
from run_machine.values import Claim
from support.open_files import open_files

__all__ = ["Patches", "Records", "check_files", "check_same", "held_tensors", "live_tensors"]

#: Attributes of modules that differ from side to side by their nature.
_OWN = ("_trainer", "_fabric", "failure", "source", "seen")


# -- equal to the twin


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


# -- every sample where it belongs, readable, and right


@dataclass
class _Due:
    required: set[int] = field(default_factory=set)
    optional: set[int] = field(default_factory=set)


class Records:
    """The samples that each place must have."""

    def __init__(self) -> None:
        self._due: dict[tuple[Path, str], _Due] = {}
        self._checked: dict[int, int] = {}
        #: by run, the directory of a record without a logger's
        self._versions: dict[int, Path] = {}
        self._files: set[Path] = set()
        #: by run and monitor, what its run of W&B's must have
        self._rows: dict[tuple[int, str], _Due] = {}
        #: what was recorded since the last check and is to be compared with the truth
        self.claims: list[Claim] = []
        #: how many samples were found, in records and in W&B's histories
        self.found = self.rows = 0

    def check(self, watched: Side, twin: Side, *, excused: bool) -> None:
        """Follow the sessions since the last check.

        Args:
            watched: The side with the records.
            twin: The side that tells what happened.
            excused: Whether something failed inside of the monitor: what is missing was then said.
        """
        self.claims = []
        now = set(watched.root.rglob("*.lightning_geo"))
        new, self._files = now - self._files, now
        for path in new:
            _check_order(path)
        for number, run in watched.runs.items():
            sessions = twin.runs[number].sessions
            fresh, self._checked[number] = sessions[self._checked.get(number, 0) :], len(sessions)
            mine = {path.parent for path in new if path.is_relative_to(run.folder)}
            new = {path for path in new if not path.is_relative_to(run.folder)}
            if not fresh:
                assert not mine, f"records were written without a fit: {mine}"
                continue
            place = self._place(run, fresh, mine)
            for session in fresh:
                for watch in _watches(watched, run):
                    self._follow(place, watch, session, run)
            if place is None:
                continue
            where = _written(run, place)
            for index, watch in enumerate(_watches(watched, run)):
                self._read(place, where, watch, watched.said if excused else [], watched)
                self._claim(where, index, run, len(sessions) - 1, fresh[-1])
        assert not new, f"records outside of the runs' places: {new}"
        assert not list(twin.root.rglob("*.lightning_geo"))

    def forget(self, number: int, watched: Side, twin: Side, *, excused: bool) -> None:
        """A run is no more; its folder may be another's now, and its run of W&B's is over."""
        self._checked.pop(number, None)
        due = {name: self._rows.pop((run, name)) for run, name in list(self._rows) if run == number}
        folder = watched.finished.get(number)
        if folder is None:
            return
        ours = Finished.read(folder)
        if number in twin.finished:
            same(ours.users, Finished.read(twin.finished[number]).users, f"run {number}: W&B")
        for name in ("geometry", "geometry2"):
            rows, where = ours.samples(name), f"{folder}, {name}: W&B"
            self._compare(set(rows), due.get(name, _Due()), where, watched.said if excused else [], watched)
            self.rows += len(rows)

    def inherit(self, number: int, origin: int) -> None:
        """A run goes on in the folder of another."""
        if origin in self._versions:
            self._versions[number] = self._versions[origin]

    def _place(self, run: Run, sessions: list[Session], written: set[Path]) -> Path | None:
        if run.places:
            place = run.places[0]
            where = _written(run, place)
            assert written <= {where}, f"run {run.number} belongs to {where}, but wrote to {written}"
            return place
        root, before = run.folder / "lightning_geo", self._versions.get(run.number)
        assert len(written) <= len(sessions), f"run {run.number} wrote to {written}"
        if not written:
            return before
        assert all(place.parent == root for place in written), written
        place = max(written, key=lambda path: int(path.name.removeprefix("version_")))
        if before is not None and (sessions[-1].begun or 0) > 0:
            assert place == before, f"run {run.number} went on in {place} instead of {before}"
        elif sessions[-1].begun == 0:
            assert place not in self._versions.values(), f"run {run.number} wrote into {place} of another"
        self._versions[run.number] = place
        return place

    def _follow(self, place: Path | None, watch: Watch, session: Session, run: Run) -> None:
        if session.begun is None or place is None:
            return
        due = self._due.setdefault((place, watch.name), _Due())
        begun = session.begun
        if begun == 0:  # what an earlier attempt wrote may stay until there is a new sample
            due.required, due.optional = set(), due.required | due.optional
        else:
            due.optional = {s for s in due.optional | due.required if s <= begun}
            due.required = {s for s in due.required if s < begun}
        required = {s for s in session.entered if s % watch.every == 0}
        if watch.source == "batch":
            required = {s for s in required if s < session.step}
        elif session.finished:
            required.add(session.step)
        optional = set(required)
        due.optional |= optional
        if session.error and session.entered:
            required.discard(session.entered[-1])
            if not session.finished:
                required.discard(session.step)
        if begun > 0:  # it may have been taken before the checkpoint was written, elsewhere
            required.discard(begun)
        due.required |= required
        rows = self._rows.setdefault((run.number, watch.name), _Due())
        rows.required, rows.optional = rows.required | required, rows.optional | optional

    def _read(self, place: Path, where: Path, watch: Watch, said: list[str], watched: Side) -> None:
        try:
            steps = set(load_history(where, watch.name).steps.tolist())
        except (FileNotFoundError, ValueError):
            steps = set()
        self.found += len(steps)
        self._compare(
            steps, self._due.get((place, watch.name), _Due()), f"{place}, {watch.name}", said, watched
        )

    @staticmethod
    def _compare(steps: set[int], due: _Due, where: str, said: list[str], watched: Side) -> None:
        extra, missing = steps - due.required - due.optional, due.required - steps
        late = any("nothing to replay" in line for line in watched.said)  # the step after makes up for it
        # the user's own step may fail when it is run once more, at a time at which training does not run it
        dropped = any("a sample was dropped: InjectedError: at " in line for line in watched.said)
        assert not extra or late, f"{where}: {extra} do not belong here, {due}"
        assert said or late or dropped or not missing, (
            f"{where}: {missing} are missing of {due}: {watched.said}"
        )

    def _claim(self, place: Path, index: int, run: Run, session: int, taken: Session) -> None:
        """Note what a session recorded with a probe, to be compared with its snapshots.

        Samples of earlier sessions stay in the record where this one took none of its own: it resumed at
        their step, or was interrupted before it trained, and its state at that step is another.
        """
        watch = run.begin.watches[index]
        probe = run.monitors[index]._run.samples.inputs.probe
        if watch.source != "probe" or probe is None:
            return
        try:
            history = load_history(place, watch.name)
        except (FileNotFoundError, ValueError):
            return
        for sample, step in enumerate(history.steps.tolist()):
            if history.metadata["wall_time"][sample] < run.sessions[-1].started:
                continue
            fingerprint = history.metadata["probe_fingerprint"][sample]
            if step in taken.snapshots and fingerprint == probe.fingerprint:
                record = history.record(sample)
                error = record["entropy.stderr"] if "entropy.stderr" in record else None  # noqa: SIM401, it is no mapping
                where = f"{place}, {watch.name}, step {step}"
                self.claims.append(
                    Claim(
                        where, run.number, session, step, index, fingerprint, watch.max_queries,
                        record["entropy"], error,
                    )
                )  # fmt: skip


def _check_order(path: Path) -> None:
    """Each session writes each of its samples once, in the order of steps."""
    steps: dict[str, list[int]] = {}
    for event in read_events(place(path)):
        if (found := parse_record(event)) is not None:
            steps.setdefault(found[0], []).append(found[1].step)
    for name, taken in steps.items():
        assert taken == sorted(set(taken)), f"{path}, {name}: samples of steps {taken} in this order"


def _written(run: Run, place: Path) -> Path:
    """Where the record of a run is: W&B makes a directory at each start."""
    online = run.online if place.name == "wandb" else None
    return place if online is None else Path(online.dir)


def _watches(side: Side, run: Run) -> list[Watch]:
    """Descriptions of a run's monitors: those of the run that it has them from."""
    return list(run.begin.watches)


# -- nothing left behind


class Patches:
    """Functions and switches of this process as they were."""

    def __init__(self) -> None:
        self._owners: dict[str, Any] = {
            "torch": torch, "torch.nn.functional": nn.functional, "torch.Tensor": Tensor,
            "torch.nn.Module": nn.Module, "torch.nn.MultiheadAttention": nn.MultiheadAttention,
            "torch.nn.TransformerEncoderLayer": nn.TransformerEncoderLayer,
            "torch.nn.modules.module": nn.modules.module, "torch.autograd.graph": torch.autograd.graph,
            "torch.utils.checkpoint": torch.utils.checkpoint, "pl.Trainer": pl.Trainer,
            "pl.LightningModule": pl.LightningModule, "AttentionInterface": AttentionInterface,
            "Attention": Attention, "Bert": Bert, "Module": Module,
        }  # fmt: skip
        self._before = {name: dict(vars(owner)) for name, owner in self._owners.items()}
        self._routes = dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
        self._switches = self._now()

    def check(self) -> None:
        """Assert that all is as it was."""
        for name, owner in self._owners.items():
            for attribute, value in self._before[name].items():
                assert vars(owner).get(attribute) is value, f"{name}.{attribute} was replaced"
        assert dict(ALL_ATTENTION_FUNCTIONS._global_mapping) == self._routes
        assert self._now() == self._switches

    def _now(self) -> dict[str, Any]:
        return {
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "function modes": torch._C._len_torch_function_stack(),
            "dispatch modes": torch._C._len_torch_dispatch_stack(),
            "dtype": torch.get_default_dtype(),
            "gradients": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "stance": torch._dynamo.eval_frame._stance.stance,
            "global hooks": [
                len(hooks) for name, hooks in vars(nn.modules.module).items()
                if name.startswith("_global") and isinstance(hooks, dict)
            ],
            "trace": sys.gettrace() is None,
        }  # fmt: skip


def check_files(watched: Side, twin: Side) -> None:
    """No file is open that is not open on the other side."""
    ours, theirs = ([_ended(path, side.root) for path in open_files(side.root)] for side in (watched, twin))
    assert collections.Counter(ours) <= collections.Counter(theirs), f"{ours} are open, not just {theirs}"


def _ended(path: str, root: Path) -> str:
    """A file's directory, and its name where that is not one of the record's."""
    relative = Path(path).relative_to(root)
    relative = Path(re.sub(r"offline-run-[^/]+", "offline-run", str(relative)))  # with the time
    return str(relative) if relative.suffix == ".lightning_geo" else str(relative.parent)


def live_tensors() -> int:
    """How many tensors there are."""
    gc.collect()
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


def held_tensors(side: Side) -> int:
    """How many tensors are the monitors' own: what they reach without a model, and their metrics."""
    runs = side.runs.values()
    waiting: list[Any] = [monitor for run in runs for monitor in run.monitors]
    waiting += [v for run in runs for k, v in run.trainer.callback_metrics.items() if "geometry" in k]
    seen: set[int] = set()
    count = 0
    stop = (nn.Module, pl.Trainer, type, types.ModuleType, types.FunctionType, types.FrameType)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, stop):
            continue
        seen.add(id(item))
        count += isinstance(item, Tensor)
        # an array of a record's may be a view of a tensor, which the garbage collector does not know
        waiting += [item.base] if isinstance(item, np.ndarray) else gc.get_referents(item)
    return count
