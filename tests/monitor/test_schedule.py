"""Which steps are sampled."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.monitor.schedule import OverheadBudget, Schedule, SlowClocks


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 50, 100]),
        ({"every_n_steps": 30}, [0, 30, 60, 90, 120]),
        ({"schedule": lambda step: step in (7, 110)}, [0, 7, 110]),  # step 0 whatever it says
    ],
)
def test_steps(arguments, expected):
    schedule = Schedule(**arguments)
    assert [step for step in range(121) if schedule(step)] == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` to be an integer of at least 1 but got 0"),
        ({"every_n_steps": -5}, ValueError, "but got -5"),
        ({"every_n_steps": 2.5}, ValueError, "but got 2.5"),
        ({"every_n_steps": True}, ValueError, "but got True"),
        ({"every_n_steps": 5, "schedule": bool}, ValueError, "either `every_n_steps` or `schedule`"),
        ({"schedule": 5}, TypeError, "`schedule` to be a callable"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Schedule(**arguments)


class Run:
    """A clock, and steps and samples that take the time they are told."""

    def __init__(self) -> None:
        self.now, self.spent, self.samples = 100.0, 0.0, 0
        self.steps: list[int] = []
        self.shares: list[float] = []

    def go(self, budget: OverheadBudget, steps: int, step_time, sample_time) -> None:
        begin = self.now
        budget.start(0)
        for step in range(steps):
            if budget(step, self.spent, self.samples):
                self.now += sample_time(step)
                self.spent += sample_time(step)
                self.samples += 1
                self.steps.append(step)
                self.shares.append(self.spent / (self.now - begin))
            self.now += step_time(step)


@given(
    share=st.sampled_from([0.005, 0.01, 0.1, 0.5]),
    step=st.floats(1e-3, 1.0),
    sample=st.floats(1e-3, 20.0),
    drift=st.floats(-0.9, 5.0),
)
def test_a_budget_is_kept_and_used(share, step, sample, drift):
    run = Run()
    budget = OverheadBudget(share, clock=lambda: run.now)
    steps = 3000
    run.go(budget, steps, lambda s: step * (1 + drift * s / steps), lambda s: sample)
    assert run.steps[0] == 0
    assert all(part <= share + 1e-9 for part in run.shares[1:])
    whole = run.now - 100.0
    # as many samples as fit, but for the wait that ends between two looks
    assert run.samples > 0.9 * steps or run.spent + 3 * sample >= share * whole / 3


def test_a_budget_goes_on_where_the_run_was_resumed():
    run = Run()
    budget = OverheadBudget(0.1, clock=lambda: run.now)
    budget.before = 50.0
    budget.start(40)
    assert not budget(40, 6.0, 3)  # 8 of 52 seconds would be too much
    assert not budget(60, 6.0, 3)
    run.now += 60.0
    assert budget(70, 6.0, 3)


def test_ranks_decide_alike():
    run = Run()
    budget = OverheadBudget(0.1, clock=lambda: run.now)
    budget.start(0)
    assert budget(0, 0.0, 0)
    assert budget(8, 1.0, 1, lambda wait: 0)  # rank 0 says now, whatever this clock shows
    run.now += 1000.0
    assert not budget(9, 1.0, 2, lambda wait: 5)
    assert not budget(13, 1.0, 2, lambda wait: 0)
    assert budget(14, 1.0, 2, lambda wait: 0)


def test_samples_that_are_dropped_cost_as_well():
    run = Run()
    budget = OverheadBudget(0.1, clock=lambda: run.now)
    budget.start(0)
    tried = []
    for step in range(200):
        if budget(step, run.spent, samples=0):
            tried.append(step)
            run.now += 1.0
            run.spent += 1.0
        run.now += 0.1
    assert tried[0] == 0
    assert run.spent <= 0.1 * (run.now - 100.0)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, True, "1%"])
def test_a_bad_budget_is_named(share):
    with pytest.raises(ValueError, match="`max_overhead` to be a share of the run's time between 0 and 1"):
        OverheadBudget(share)


def test_slower_metrics_have_their_samples_and_the_last():
    clocks = SlowClocks(weights_every_n_samples=4, importance_every_n_samples=2)
    names = ("entropy", "symmetry", "query_value_angle", "importance")
    due = [clocks.due(names, samples) for samples in range(6)]
    assert [s for s in range(6) if "symmetry" in due[s]] == [0, 4]
    assert [s for s in range(6) if "query_value_angle" in due[s]] == [0, 4]
    assert [s for s in range(6) if "importance" in due[s]] == [0, 2, 4]
    assert all("entropy" in metrics for metrics in due)
    assert clocks.due(names, 5, final=True) == names
    with pytest.raises(
        ValueError, match="`importance_every_n_samples` to be an integer of at least 1 but got 0"
    ):
        SlowClocks(weights_every_n_samples=4, importance_every_n_samples=0)


def test_slow_clocks_know_what_metrics_read_whatever_was_imported_before():
    program = (
        "from lightning_geo.monitor.schedule import SlowClocks\n"
        "clocks = SlowClocks(weights_every_n_samples=2, importance_every_n_samples=3)\n"
        "print(*clocks.due(('entropy', 'symmetry', 'importance'), 1))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["entropy"]
