"""Parameters that are split over processes: the probe gives the record of one process, and nobody waits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip(
    "torch.distributed.tensor.experimental._context_parallel",
    reason="this torch has no such context parallelism",
)

from lightning_geo import GeometryRecord
from programs import sharding
from support.forks import Forks
from support.same_records import assert_same
from support.shards import (
    ABSENT,
    assert_as_in_bfloat16,
    assert_as_one_process,
    assert_costs_one_sample,
    assert_same_training,
    results,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11),
        reason="`fully_shard` of torch 2.6 does not run on a CPU",
    ),
]

#: Loops other than Lightning's.
LOOPS = ("plain", "fabric", "accelerate", "transformers")
SAME = ("sharded", "one_sequence", "towers", "layers", "given", "resumed", *LOOPS)
#: Rank 1 alone fails in the sample at step 2, or at step 0.
FAILING = {
    "fails_in_share": [0, 4, 6],
    "fails_in_begin": [0, 4, 6],
    "fails_in_observe": [0, 4, 6],
    "fails_in_hook": [0, 4, 6],
    "fails_in_block": [0, 4, 6],
    "fails_in_packing": [0, 4, 6],
    "fails_in_model": [0, 4, 6],
    "fails_in_model_once": [0, 4, 6],
    "fails_in_first_model": [2, 4, 6],
}
#: The same where layers run in another order than they are listed, and one that fails is left out.
FAILING_FIRST = {"backwards_fails": "backwards_unhindered", "lenient_fails": "lenient_unhindered"}
#: What failing runs of Lightning and of a loop of one's own begin with, and the same without failures.
LIKE = {"": "unhindered", "loop_": "plain"}
#: What takes pairs of heads, and what an attention module writes without its output projection.
PAIRS = ("redundancy", "complementarity")
WRITTEN = ("cone.attention", "cone_index.attention", "mean_cosine.attention")
#: Where each rank has some of the heads of a layer: what is absent.
SPLIT = {"heads": (*PAIRS, *WRITTEN), "grouped": PAIRS, "grouped_batch": PAIRS, "wide": (), "drawn": ()}
#: Rank 1 alone fails in the sample at step 2, or at step 0, in what it computes with others.
FAILING_SPLIT = {"heads_in_hook": [0, 4, 6], "heads_in_model": [0, 4, 6], "heads_in_first_model": [2, 4, 6]}
#: What four processes run, of which at least one has no share of the probe in the second.
FOUR = (
    "sharded", "one_sequence", "unhindered", "fails_in_model", "grouped", "heads_unhindered", *FAILING_SPLIT,
)  # fmt: skip
#: Where each rank has a part of each sequence.
PART = ("contextual", "contextual_batch")
OTHERS = [
    "weighed",
    "unmonitored",
    "unhindered",
    "poisoned",
    "scheduled",
    "costs",
    "plain_unmonitored",
    "mixed",
    "mixed_unmonitored",
    *FAILING_FIRST,
    *FAILING_FIRST.values(),
    *SPLIT,
    *FAILING_SPLIT,
    "heads_unhindered",
    "weighed_heads",
    *PART,
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Where two processes have run all scenarios."""
    directory = tmp_path_factory.mktemp("sharding")
    scenarios = [*SAME, *OTHERS, *FAILING, *(f"loop_{name}" for name in FAILING)]
    forks.ranks(2, "programs.sharding", str(directory), *scenarios, folder=directory)
    return directory


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Where four processes have run some scenarios."""
    directory = tmp_path_factory.mktemp("sharding_of_four")
    forks.ranks(4, "programs.sharding", str(directory), *FOUR, folder=directory)
    return directory


@pytest.mark.parametrize("scenario", SAME)
def test_two_processes_record_what_one_does(directory: Path, tmp_path: Path, scenario: str) -> None:
    assert_as_one_process(sharding.run, scenario, directory, tmp_path)


@pytest.mark.parametrize("scenario", ["sharded", "one_sequence"])
def test_four_processes_record_what_one_does(four: Path, tmp_path: Path, scenario: str) -> None:
    assert_as_one_process(sharding.run, scenario, four, tmp_path)


def test_one_of_four_that_fails_costs_all_of_them_that_sample_alone(four: Path) -> None:
    for result, untouched in zip(results(four, "fails_in_model"), results(four, "unhindered"), strict=True):
        assert [record.step for record in result["records"]] == [0, 4, 6]
        assert result["loss"] == untouched["loss"]


def test_what_is_computed_in_bfloat16_is_measured_in_it(directory: Path, tmp_path: Path) -> None:
    assert_as_in_bfloat16(sharding.run, "mixed", directory, tmp_path)


def test_a_sample_gathers_what_its_forward_passes_do_and_holds_no_more(directory: Path) -> None:
    """Beside the agreement before, each call gathers all parameters once, at most one layer at a time.

    In the first call ranks agree before each module and at its end, too: two numbers each time.
    """
    for result in results(directory, "costs"):
        whole, *layers = result["sizes"]  # the whole model, and its layers
        for index, ((counts, sizes), (_, calls, rounds)) in enumerate(
            zip(result["sent"], result["left"], strict=True)
        ):
            assert list(rounds.values()) == [(0, calls)]
            first = 2 + len(layers) if index == 0 else 0
            assert counts == {"allreduce_": 1 + first, "_allgather_base_": calls * (1 + len(layers))}
            assert sizes == {"allreduce_": 8 * (1 + first), "_allgather_base_": calls * 4 * whole}
        assert result["peaks"][True] == whole - sum(layers) + max(layers) == result["peaks"][False]
        assert all(gathered == 0 for gathered, *_ in result["left"])


def test_weights_are_read_while_they_are_gathered_and_what_is_absent_is_said(
    directory: Path, tmp_path: Path
) -> None:
    one = sharding.run("weighed", tmp_path)
    first, second = results(directory, "weighed")
    for ours, theirs, mirrored in zip(one["records"], first["records"], second["records"], strict=True):
        assert set(theirs.keys()) == {name for name in ours if not name.rpartition("/")[2].startswith(ABSENT)}
        for name in theirs:
            np.testing.assert_allclose(theirs[name], ours[name], 1e-5, 1e-5, err_msg=name)
            np.testing.assert_array_equal(theirs[name], mirrored[name])
        assert ("weight_drift.query" in theirs) == (theirs.step in (0, 6))
    updates, importance = first["warnings"]
    assert "update_size, unchanged_share" in updates
    assert "importance is absent: ranks have parts of the parameters only" in importance
    assert second["warnings"] == []


@pytest.mark.parametrize(
    ("scenario", "alone"),
    [("sharded", "unmonitored"), ("plain", "plain_unmonitored"), ("mixed", "mixed_unmonitored")],
)
def test_training_is_the_same_to_the_bit_without_samples(directory: Path, scenario: str, alone: str) -> None:
    for ours, theirs in zip(results(directory, scenario), results(directory, alone), strict=True):
        assert ours["records"]
        assert_same_training(ours, theirs)


@pytest.mark.parametrize(
    ("prefix", "scenario", "untouched"),
    [(prefix, scenario, alone) for prefix, alone in LIKE.items() for scenario in FAILING],
)
def test_a_rank_that_fails_costs_all_ranks_that_sample_and_nothing_else(
    directory: Path, prefix: str, scenario: str, untouched: str
) -> None:
    assert_costs_one_sample(directory, prefix + scenario, untouched, FAILING[scenario])


@pytest.mark.parametrize("scenario", FAILING_FIRST)
def test_a_rank_that_fails_before_the_order_of_layers_is_known_leaves_nobody_waiting(
    directory: Path, scenario: str
) -> None:
    """Rank 1 would gather layers in the order of modules, or go on with another one than the others."""
    untouched = results(directory, FAILING_FIRST[scenario])
    for result, alone in zip(results(directory, scenario), untouched, strict=True):
        assert [record.step for record in result["records"]] == [2, 4, 6]
        assert [record.step for record in alone["records"]] == [0, 2, 4, 6]
        assert_same_training(result, alone)
    dropped, *_ = results(directory, scenario)[0]["warnings"]
    reason = "another rank failed (rank 1: RuntimeError: injected)"
    assert ("ranks saw other layers" if scenario == "lenient_fails" else reason) in dropped


def test_a_nan_on_one_rank_leaves_nobody_waiting(directory: Path) -> None:
    first, second = results(directory, "poisoned")
    assert [record.step for record in first["records"]] == [0, 2, 4, 6]
    for ours, theirs in zip(first["records"], second["records"], strict=True):
        assert_same(ours, theirs, 0.0)
    assert all(np.isfinite(first["records"][i]["entropy"]).all() for i in (0, 2, 3))


def test_a_schedule_that_differs_is_asked_on_rank_0_alone(directory: Path) -> None:
    for result in results(directory, "scheduled"):
        assert [record.step for record in result["records"]] == [0, 2, 4, 6]


def assert_all_heads(scenario: str, directory: Path, tmp_path: Path) -> None:
    one = sharding.run(scenario, tmp_path)
    first, *others = results(directory, scenario)
    for index, (ours, theirs) in enumerate(zip(one["records"], first["records"], strict=True)):
        lacking = [name for name in ours if name not in SPLIT[scenario]]
        assert_same(only(ours, lacking), theirs, 1e-5)
        assert theirs["entropy"].shape == (2, 8)
        for other in others:
            assert_same(theirs, other["records"][index], 0.0)
    said = " ".join(first["warnings"])
    assert all(name in said for name in SPLIT[scenario] if name in PAIRS)
    assert ("metrics of its output as a whole are absent" in said) == (scenario == "heads")
    assert all(other["warnings"] == [] for other in others)


def only(record: GeometryRecord, names: list[str]) -> GeometryRecord:
    """A record with these metrics alone."""
    (stack,) = record.stacks
    return replace(record, stacks={stack: {name: record[name] for name in names}})


@pytest.mark.parametrize("scenario", SPLIT)
def test_heads_of_two_ranks_are_recorded_as_those_of_one(
    directory: Path, tmp_path: Path, scenario: str
) -> None:
    """Head 0 of one rank is another one than head 0 of the other: their mean would be a number of no head."""
    assert_all_heads(scenario, directory, tmp_path)


def test_heads_and_parameters_split_over_four_ranks(four: Path, tmp_path: Path) -> None:
    assert_all_heads("grouped", four, tmp_path)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("scenario", FAILING_SPLIT)
def test_a_rank_that_fails_amid_others_costs_that_sample_alone(
    world: int, scenario: str, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue("directory" if world == 2 else "four")
    untouched = results(place, "heads_unhindered")
    assert len(untouched) == world
    for result, alone in zip(results(place, scenario), untouched, strict=True):
        assert [record.step for record in result["records"]] == FAILING_SPLIT[scenario]
        assert result["loss"] == alone["loss"]
    first, *others = results(place, scenario)
    *_, dropped = first["warnings"]
    assert "another rank failed (rank 1: RuntimeError: injected)" in dropped
    assert all(other["warnings"] == [] for other in others)


def test_weights_of_some_heads_do_not_pass_for_those_of_all(directory: Path, tmp_path: Path) -> None:
    one = sharding.run("weighed_heads", tmp_path)
    first, second = results(directory, "weighed_heads")
    for ours, theirs in zip(one["records"], first["records"], strict=True):
        assert "entropy" in theirs
        for name in theirs:
            np.testing.assert_allclose(theirs[name], ours[name], 1e-5, 1e-5, err_msg=name)
    said = " ".join(first["warnings"])
    for sentence in ("update_size, unchanged_share", "importance is absent", "the projections of"):
        assert sentence in said
    assert second["warnings"] == []


@pytest.mark.parametrize("scenario", PART)
def test_part_of_a_sequence_does_not_pass_for_all_of_it(directory: Path, scenario: str) -> None:
    first, second = results(directory, scenario)
    for result in (first, second):
        assert result["steps"] == 6
        assert result["records"] == []
    assert any("attend to keys on other ranks (context parallelism" in said for said in first["warnings"])
    assert second["warnings"] == []
