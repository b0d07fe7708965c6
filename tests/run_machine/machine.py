"""The state machine: draws a model, then what a user does with runs of it."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from run_machine.descriptions import Batches, Model
from run_machine.left_behind import Patches, check_files, held_tensors, live_tensors
from run_machine.operations import Begin, Fit
from run_machine.records import Records
from run_machine.runs import Side
from run_machine.same_as_twin import check_same
from run_machine.strategies import begins, data, fits, models
from run_machine.values import confirm

__all__ = ["RunMachine", "quiet"]

#: What all machines of this process did.
DONE: Counter[str] = Counter()


def quiet() -> None:
    """Keep Lightning from filling the log."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class RunMachine(RuleBasedStateMachine):
    """A watched side and its unwatched twin, which do the same."""

    #: spoils each monitor, for tests of the checks
    tamper: Callable[[Any], object] = staticmethod(lambda monitor: None)

    def __init__(self) -> None:
        super().__init__()
        quiet()
        gc.collect()
        gc.freeze()  # and no unfreezing: each look through all that was ever imported takes half a second
        self.patches = Patches()
        self.root = Path(tempfile.mkdtemp(prefix="run_machine"))
        self.records = Records()
        #: how many entropies were compared with the truth, and how many of them were estimates
        self.right = self.estimates = 0
        #: whether something failed inside of the monitor
        self.excused = False
        #: tensors that the watched side made beyond those of its twin
        self.surplus = 0
        self.sides: tuple[Side, Side] | None = None
        #: whether nothing has failed: a traceback keeps alive what it worked on
        self.sound = True
        self.begun = live_tensors()

    @initialize(model=models(), batches=data(), begin=begins())
    def start(self, model: Model, batches: Batches, begin: Begin) -> None:
        self.sides = (
            Side(self.root / "watched", model, batches, watched=True, tamper=type(self).tamper),
            Side(self.root / "twin", model, batches, watched=False),
        )
        self.each(lambda side: side.begin(begin))

    def each(self, operation: Callable[[Side], object]) -> None:
        """Do the same on both sides, and compare."""
        assert self.sides is not None
        watched, twin = self.sides
        self.sound = False
        counts = [live_tensors()]
        for side in (twin, watched):
            with side.turn():
                operation(side)
            counts.append(live_tensors())
        self.surplus += (counts[2] - counts[1]) - (counts[1] - counts[0])
        self.sound = True

    def pick(self, which: int) -> int:
        """The number of one of the runs."""
        assert self.sides is not None
        numbers = sorted(self.sides[0].runs)
        return numbers[which % len(numbers)]

    def some(self) -> bool:
        """Whether there are runs."""
        return self.sides is not None and bool(self.sides[0].runs)

    # -- what a user does

    @precondition(lambda self: self.sides is not None and len(self.sides[0].runs) < 3)
    @rule(begin=begins())
    def begin_another(self, begin: Begin) -> None:
        self.each(lambda side: side.begin(begin))
        DONE["begin"] += 1

    @precondition(some)
    @rule(which=st.integers(0, 3), begin=begins(), copied=st.sampled_from([None, None, "copy", "pickle"]))
    def begin_with_the_same_monitors(self, which: int, begin: Begin, copied: str | None) -> None:
        assert self.sides is not None
        number = self.pick(which)
        if len(self.sides[0].runs) > 3:
            return
        watches = self.sides[0].runs[number].begin.watches
        shared = replace(begin, monitors_of=number, watches=watches, copied=copied)
        self.each(lambda side: side.begin(shared))
        DONE["begin with the same monitors"] += 1

    @precondition(some)
    @rule(which=st.integers(0, 3), fit=fits())
    def fit(self, which: int, fit: Fit) -> None:
        self._fit(which, fit)

    @precondition(some)
    @rule(which=st.integers(0, 3), fit=fits())
    def fit_more(self, which: int, fit: Fit) -> None:
        self._fit(which, fit)

    @precondition(some)
    @rule(which=st.integers(0, 3), first=fits(), second=fits())
    def fit_twice(self, which: int, first: Fit, second: Fit) -> None:
        self._fit(which, first)
        self.holds()
        self._fit(which, second)

    def _fit(self, which: int, fit: Fit) -> None:
        number = self.pick(which)
        self.excused |= fit.fault is not None
        if fit.other is not None:
            fit = replace(fit, other=self.pick(fit.other))
        self.each(lambda side: side.fit(number, fit))
        assert self.sides is not None
        error = self.sides[1].runs[number].sessions[-1].error
        DONE["fit"] += 1
        DONE[f"fit: {error.partition(' at ')[0] or 'well'}"] += 1
        DONE[f"acts: {fit.acts}"] += bool(fit.acts)
        DONE["fault"] += bool(fit.fault)
        DONE[f"finished {fit.finished}"] += 1

    @precondition(some)
    @rule(which=st.integers(0, 3), kind=st.sampled_from(["validate", "test", "predict"]))
    def loop(self, which: int, kind: str) -> None:
        number = self.pick(which)
        self.each(lambda side: side.loop(number, kind))
        DONE[kind] += 1

    @precondition(some)
    @rule(which=st.integers(0, 3))
    def save(self, which: int) -> None:
        assert self.sides is not None
        number = self.pick(which)
        if self.sides[1].runs[number].sessions:
            self.each(lambda side: side.save(number))
            DONE["save"] += 1

    @precondition(lambda self: self.sides is not None and bool(self.sides[0].checkpoints))
    @rule(which=st.integers(0, 5), begin=begins(), elsewhere=st.booleans(), same=st.booleans(), fit=fits())
    def resume(self, which: int, begin: Begin, elsewhere: bool, same: bool, fit: Fit) -> None:
        assert self.sides is not None
        watched = self.sides[0]
        _, origin = watched.checkpoints[which % len(watched.checkpoints)]
        if origin not in watched.runs:
            return
        known, folder = watched.runs[origin].begin, watched.runs[origin].folder
        begin = replace(begin, watches=known.watches, accumulate=known.accumulate)
        if same:
            begin = replace(begin, monitors_of=origin)
        if not elsewhere:
            begin = replace(begin, loggers=known.loggers)
        self.each(lambda side: side.resume(which, begin, elsewhere))
        number = watched.count - 1
        if not elsewhere:
            self.records.inherit(number, origin)
            for other in [n for n in watched.runs if watched.runs[n].folder == folder and n != number]:
                self._forget(other)
        self.excused |= fit.fault is not None
        fit = replace(fit, epochs=False, other=None)
        self.each(lambda side: side.fit(number, fit))
        DONE["resume"] += 1

    @precondition(some)
    @rule(which=st.integers(0, 3), how=st.sampled_from(["copy", "pickle"]))
    def copy(self, which: int, how: str) -> None:
        number = self.pick(which)
        self.each(lambda side: side.copy(number, how))
        DONE["copy"] += 1

    @precondition(some)
    @rule(which=st.integers(0, 3))
    def forget(self, which: int) -> None:
        self._forget(self.pick(which))
        DONE["forget"] += 1

    def _forget(self, number: int) -> None:
        self.each(lambda side: side.forget(number))
        assert self.sides is not None
        self.records.forget(number, *self.sides, excused=self.excused)

    # -- what has to hold

    @precondition(lambda self: self.sides is not None)
    @invariant()
    def holds(self) -> None:
        assert self.sides is not None
        watched, twin = self.sides
        self.sound = False
        check_same(watched, twin)
        self.records.check(watched, twin, excused=self.excused)
        right, estimates = confirm(self.records.claims, watched, twin)
        self.right, self.estimates = self.right + right, self.estimates + estimates
        self.patches.check()
        check_files(watched, twin)
        gc.collect()
        alive = [name for side in self.sides for ref in side.forgotten if (name := _alive(ref))]
        assert not alive, f"alive of runs that were forgotten: {Counter(alive)}"
        held = held_tensors(watched)
        assert self.surplus <= held, f"{self.surplus} tensors more than the twin's, {held} of the monitors'"
        DONE["steps"] += 1
        self.sound = True

    def teardown(self) -> None:
        try:
            if self.sides is not None and self.sound:
                for number in list(self.sides[0].runs):
                    self._forget(number)
                alive = [name for side in self.sides for ref in side.forgotten if (name := _alive(ref))]
                assert not alive, f"alive of runs that were forgotten: {Counter(alive)}"
                self.sides = None
                left = live_tensors() - self.begun
                assert left <= 0, f"{left} tensors are left of runs that are over"
        finally:
            for side in self.sides or ():
                side.close()
            self.sides = None
            DONE["examples"] += 1
            DONE["samples"] += self.records.found
            DONE["rows of W&B"] += self.records.rows
            DONE["entropies"] += self.right
            DONE["estimates"] += self.estimates
            with contextlib.suppress(OSError):
                shutil.rmtree(self.root)


def _alive(ref: Any) -> str:
    found = ref()
    return "" if found is None else type(found).__name__
