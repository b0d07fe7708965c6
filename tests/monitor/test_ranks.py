"""Several ranks: the record of two processes is that of one, and a rank that fails leaves nobody waiting.

All scenarios of ``programs.ranks`` run in one pair of processes, those with one
process in this one.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from programs import ranks
from programs.rank_expectations import FAILING, SAME, SWITCHING, TOLD
from support.forks import Forks
from support.same_records import assert_same, assert_same_patterns

pytestmark = pytest.mark.slow
needs_sharding = pytest.mark.skipif(
    not ranks.FULLY_SHARDS, reason="`fully_shard` of torch 2.6 does not run on a CPU"
)
#: Those of them that this torch can run.
RUNNING = [pytest.param(name, marks=needs_sharding) if name == "sharded" else name for name in SAME]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Where two processes have run all scenarios."""
    directory = tmp_path_factory.mktemp("ranks")
    # what may leave a rank behind comes last
    others = [
        "one_cannot_take_the_given",
        "one_cannot_load",
        "one_cannot_derive",
        "one_cannot_pause",
        "budget",
        "schedule",
        "unprepared",
        "collectives",
        "dropping",
        "foreign",
        "stopped",
    ]
    scenarios = [*SAME, *others, *SWITCHING, *TOLD, *FAILING, "strict"]
    if not ranks.FULLY_SHARDS:
        scenarios.remove("sharded")
    assert set(scenarios) == set(ranks.SCENARIOS)
    forks.ranks(ranks.WORLD_SIZE, "programs.ranks", str(directory), *scenarios, folder=directory)
    return directory


def results(directory: Path, scenario: str) -> list[dict[str, Any]]:
    """What each rank made of a scenario."""
    found = []
    for rank in range(ranks.WORLD_SIZE):
        with (directory / f"{scenario}.{rank}.pickle").open("rb") as file:
            found.append(pickle.load(file))
    return found


@pytest.mark.parametrize("scenario", RUNNING)
def test_two_processes_record_what_one_does(directory: Path, tmp_path: Path, scenario: str) -> None:
    one = ranks.run(scenario, tmp_path)
    first, second = results(directory, scenario)
    assert [record.step for record in one["records"]] == SAME[scenario]
    for ours, theirs, mirrored in zip(one["records"], first["records"], second["records"], strict=True):
        assert_same(ours, theirs, 1e-5)
        assert_same(theirs, mirrored, 0.0)
        assert not mirrored.patterns  # rank 0 has the probe's first sequence
        assert_same_patterns(ours, theirs)
    assert first["loss"] != second["loss"]  # they did have different inputs
    np.testing.assert_allclose(np.mean([first["loss"], second["loss"]], 0), one["loss"], 1e-5)


def test_sequences_that_come_one_by_one_are_replayed_by_all_ranks(directory: Path, tmp_path: Path) -> None:
    assert [result["replayed"] for result in results(directory, "one_by_one")] == [3, 3]
    assert ranks.run("one_by_one", tmp_path)["replayed"] == 6


def test_ranks_whose_clocks_disagree_sample_the_same_steps(directory: Path) -> None:
    first, second = ([record.step for record in result["records"]] for result in results(directory, "budget"))
    assert first == second
    assert first[0] == 0
    assert first[-1] == 12


def test_a_schedule_of_the_users_is_asked_on_rank_0_alone(directory: Path) -> None:
    """It says something else on rank 1, where it fails later on."""
    first, second = results(directory, "schedule")
    for result in (first, second):
        assert [record.step for record in result["records"]] == [0, 2, 4, 6]
        assert result["warnings"] == []


def test_a_rank_that_cannot_prepare_leaves_nobody_waiting(directory: Path) -> None:
    untouched = results(directory, "training")
    for rank, result in enumerate(results(directory, "unprepared")):
        assert result["records"] == []
        assert result["steps"] == 6
        assert result["loss"] == untouched[rank]["loss"]
    assert any("cannot be observed" in said for said in results(directory, "unprepared")[0]["warnings"])


@pytest.mark.parametrize("scenario", [*RUNNING, *FAILING])
def test_callback_metrics_are_everywhere_and_files_from_rank_0_alone(directory: Path, scenario: str) -> None:
    first, second = results(directory, scenario)
    ours, theirs = (
        {name: value for name, value in result["callback_metrics"].items() if name.startswith("geometry/")}
        for result in (first, second)
    )
    assert ours == theirs
    assert any(name.endswith("/entropy") for name in ours)
    assert len(first["files"]) == (2 if scenario == "resumed" else 1)
    assert second["files"] == []


@pytest.mark.parametrize("scenario", FAILING)
def test_a_rank_that_fails_costs_all_ranks_that_sample_and_nothing_else(
    directory: Path, scenario: str
) -> None:
    untouched = results(directory, "training")
    for rank, result in enumerate(results(directory, scenario)):
        assert [record.step for record in result["records"]] == FAILING[scenario]
        assert result["loss"] == untouched[rank]["loss"]
        if rank == 0:  # rank 1, which failed, leaves it to rank 0 to say so
            (warning,) = result["warnings"]
            assert "another rank failed (rank 1: RuntimeError: injected)" in warning
        else:
            assert result["warnings"] == []


@pytest.mark.parametrize("scenario", SWITCHING)
def test_all_ranks_or_none_observe_training_itself(directory: Path, scenario: str) -> None:
    first, second = results(directory, scenario)
    (warning,) = first["warnings"]
    assert 'nothing to replay, so `source="batch"` is used: ' in warning
    assert "Parts: TypeError" in warning
    assert ("rank 1" in warning) == scenario.endswith("rank_1")
    assert second["warnings"] == []
    # the step in which it was found out is made up for by the next
    steps = [0, 2, 4] if "validation" in scenario else [1, 2, 4]
    for result in (first, second):
        assert [record.step for record in result["records"]] == steps
        assert result["steps"] == 6
    for ours, theirs in zip(first["records"], second["records"], strict=True):
        assert_same(ours, theirs, 0.0)
        assert ours.probe_fingerprint == ""
        assert "drift" not in ours


@pytest.mark.parametrize("scenario", TOLD)
def test_what_one_rank_has_to_say_is_said_once(directory: Path, scenario: str) -> None:
    """By rank 0, unless there was no way to tell it."""
    what, by, steps = TOLD[scenario]
    for rank, result in enumerate(results(directory, scenario)):
        assert [record.step for record in result["records"]] == steps
        if rank == by:
            (warning,) = result["warnings"]
            assert what in warning
        else:
            assert result["warnings"] == []


def test_a_metric_from_outside_that_fails_on_one_rank_is_absent_on_all(directory: Path) -> None:
    """Rank 0's sequences alone would pass for all of them."""
    first, second = results(directory, "foreign")
    for ours, theirs in zip(first["records"], second["records"], strict=True):
        assert_same(ours, theirs, 0.0)
        np.testing.assert_array_equal(ours["largest"], ours["max_logit"])
        assert ("faulty" in ours) == ("collected" in ours) == (ours.step != 3)
    for step, record in zip((0, 3, 6), first["records"], strict=True):
        assert record.step == step
        if step != 3:
            np.testing.assert_allclose(record["faulty"], record["entropy"], 1e-6)
            np.testing.assert_allclose(record["collected"], 1.5)  # as many sequences here as there
    said = "\n".join(first["warnings"])
    assert "rank 1: the metric 'faulty' is absent: ArithmeticError: function" in said
    assert "the metric 'collected' is absent: RuntimeError: it failed" in said
    assert "rank 1: the metric 'collected' is absent: ArithmeticError: collector" in said
    assert len(first["warnings"]) == 3
    assert second["warnings"] == []


def test_a_rank_that_cannot_derive_its_metrics_has_the_next_sample_with_the_others(directory: Path) -> None:
    """Which metrics are due next depends on how many samples there were."""
    first, second = results(directory, "one_cannot_derive")
    assert [record.step for record in first["records"]] == [0, 2, 4, 6]
    assert [record.step for record in second["records"]] == [2, 4, 6]
    for ours, theirs in zip(first["records"][1:], second["records"], strict=True):
        assert ours.keys() == theirs.keys()
    assert ["importance" in record for record in first["records"]] == [True, False, True, True]
    (warning,) = first["warnings"]
    assert "rank 1: a sample was dropped: RuntimeError: injected" in warning


def test_a_rank_that_cannot_load_its_state_starts_anew_with_the_others(directory: Path) -> None:
    first, second = results(directory, "one_cannot_load")
    for result in (first, second):
        assert [record.step for record in result["records"]] == [4, 6, 8]
    for ours, theirs in zip(first["records"], second["records"], strict=True):
        assert_same(ours, theirs, 0.0)
        assert ours.probe_fingerprint
    assert any("ranks have different states of the run: Probe" in said for said in first["warnings"])
    assert second["warnings"] == []


def test_a_rank_that_cannot_try_the_given_probe_leaves_nobody_waiting(directory: Path) -> None:
    first, second = results(directory, "one_cannot_take_the_given")
    for result in (first, second):
        assert [record.step for record in result["records"]] == [1, 2, 4]
        assert result["steps"] == 6
    assert any("the given probe cannot be used" in said and "rank 1" in said for said in first["warnings"])
    assert second["warnings"] == []


def test_a_rank_that_cannot_stop_observing_leaves_nobody_waiting(directory: Path) -> None:
    first, second = results(directory, "one_cannot_pause")
    untouched = results(directory, "training")
    for result, other in zip((first, second), untouched, strict=True):
        assert [record.step for record in result["records"]] == [0, 4]
        assert result["loss"] == other["loss"]
    assert any("injected" in said for said in first["warnings"])
    assert second["warnings"] == []


def test_a_rank_that_fails_under_strict_stops_all_of_them(directory: Path) -> None:
    first, second = results(directory, "strict")
    assert "another rank failed" in first["raised"]
    assert second["raised"] == "injected"


def test_layers_of_equal_shape_are_not_mixed_up(directory: Path) -> None:
    """At step 2 rank 0 ran layers 1 and 2, rank 1 layers 0 and 2."""
    first, second = results(directory, "dropping")
    for result in (first, second):
        assert [record.step for record in result["records"]] == [0, 4]
    (warning,) = first["warnings"]
    assert "saw other layers" in warning
    assert second["warnings"] == []


def test_a_sample_takes_three_collectives(directory: Path) -> None:
    for result in results(directory, "collectives"):
        assert result["per_sample"] == {"all_gather": 1, "all_reduce": 2}


def test_a_finding_stops_all_ranks_and_is_told_on_rank_0(directory: Path) -> None:
    first, second = results(directory, "stopped")
    assert (first["told"], second["told"]) == (["seen"], [])
    assert first["steps"] == second["steps"] == 2  # found before step 1, which still ends
    assert first["kept"] == ["geometry-step=2.ckpt"]
