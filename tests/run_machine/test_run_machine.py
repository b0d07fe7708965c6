"""What a user does with runs, drawn: training is as without a monitor, every sample is where it belongs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis.stateful import run_state_machine_as_test

from run_machine.descriptions import Batches, Model
from run_machine.examples import BATCHES, DEEP, WATCHES, fixed_unless_deep
from run_machine.machine import RunMachine
from run_machine.operations import Begin, Fit

pytestmark = pytest.mark.slow


def test_runs() -> None:
    run_state_machine_as_test(
        RunMachine, settings=fixed_unless_deep(20, stateful_step_count=20 if DEEP else 10)
    )


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
