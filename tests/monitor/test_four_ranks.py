"""Four ranks: their record is that of one process, and one that fails costs all of them a sample."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from programs import ranks
from programs.rank_expectations import FAILING
from support.forks import Forks
from support.shards import assert_as_one_process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Where four processes have run some scenarios."""
    directory = tmp_path_factory.mktemp("ranks_of_four")
    forks.ranks(4, "programs.ranks", str(directory), "validation", "fails_in_replay", folder=directory)
    return directory


def test_four_processes_record_what_one_does(four: Path, tmp_path: Path) -> None:
    assert_as_one_process(ranks.run, "validation", four, tmp_path)


def test_one_of_four_that_fails_costs_all_of_them_that_sample_alone(four: Path) -> None:
    for rank in range(4):
        result = pickle.loads((four / f"fails_in_replay.{rank}.pickle").read_bytes())
        assert [record.step for record in result["records"]] == FAILING["fails_in_replay"]
