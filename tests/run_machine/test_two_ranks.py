"""Runs of two ranks, drawn: each rank trains as without a monitor, and every sample is where it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given

from run_machine.descriptions import Model
from run_machine.examples import BATCHES, WATCHES, fixed_unless_deep
from run_machine.operations import Begin, Fit
from run_machine.pair import Pair
from run_machine.two_ranks import Program, programs
from support.forks import Forks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Pair]:
    """Two ranks for all programs."""
    ranks = Pair(tmp_path_factory.mktemp("ranks"), forks)
    yield ranks
    ranks.close()


@fixed_unless_deep(5)
@given(program=programs())
def test_runs_of_two_ranks(pair: Pair, program: Program) -> None:
    pair.run(program)


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
