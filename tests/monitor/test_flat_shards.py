"""FSDP1 splits parameters over processes: the probe gives the record of one process, and nobody waits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from programs import flat_shards
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
        reason="the probe was not tried under the FSDP1 of older torch",
    ),
]

#: How parameters are split; the same in one process.
SPLITS = ("one_unit", "one_unit_of_originals", "layers", "layers_of_originals", "kept", "whole")
SAME = ("given", "one_sequence", "accelerate", "fabric", "transformers", "lightning")
#: With samples and without.
ALONE = {
    "layers": "unmonitored",
    "layers_of_originals": "unmonitored_originals",
    "mixed": "unmonitored_mixed",
    "lightning": "lightning_unmonitored",
}
#: Rank 1 alone fails in the sample at step 2, or at step 0, before it is known what a pass gathers.
FAILING = {
    "fails_in_share": [0, 4, 6],
    "fails_in_observe": [0, 4, 6],
    "fails_in_hook": [0, 4, 6],
    "fails_in_model": [0, 4, 6],
    "fails_in_first_model": [2, 4, 6],
    "fails_in_first_observe": [2, 4, 6],
}
SCENARIOS = [
    *SPLITS, *SAME, *dict.fromkeys([*ALONE, *ALONE.values()]), *FAILING, "batch", "costs", "weighed",
    "lightning_fails", "offloaded",
]  # fmt: skip
FOUR = ("layers", "one_sequence", "unmonitored", "fails_in_model")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Where two processes have run all scenarios."""
    directory = tmp_path_factory.mktemp("flat_shards")
    scenarios = dict.fromkeys(SCENARIOS)
    forks.ranks(2, "programs.flat_shards", str(directory), *scenarios, folder=directory)
    return directory


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Where four processes have run some scenarios; one of them has no sequence of the second."""
    directory = tmp_path_factory.mktemp("flat_shards_of_four")
    forks.ranks(4, "programs.flat_shards", str(directory), *FOUR, folder=directory)
    return directory


@pytest.mark.parametrize("scenario", ["layers", "one_sequence"])
def test_four_processes_record_what_one_does(four: Path, tmp_path: Path, scenario: str) -> None:
    assert_as_one_process(flat_shards.run, scenario, four, tmp_path)


def test_one_of_four_that_fails_costs_all_of_them_that_sample_alone(four: Path) -> None:
    assert_costs_one_sample(four, "fails_in_model", "unmonitored", FAILING["fails_in_model"])


@pytest.mark.parametrize("scenario", [*SPLITS, *SAME])
def test_two_processes_record_what_one_does(directory: Path, tmp_path: Path, scenario: str) -> None:
    assert_as_one_process(flat_shards.run, scenario, directory, tmp_path)


@pytest.mark.parametrize(("scenario", "alone"), ALONE.items())
def test_training_is_the_same_to_the_bit_without_samples(directory: Path, scenario: str, alone: str) -> None:
    for ours, theirs in zip(results(directory, scenario), results(directory, alone), strict=True):
        assert [record.step for record in ours["records"]] == [0, 2, 4, 6]
        assert_same_training(ours, theirs)


def test_what_is_computed_in_bfloat16_is_measured_in_it(directory: Path, tmp_path: Path) -> None:
    assert_as_in_bfloat16(flat_shards.run, "mixed", directory, tmp_path)


def test_a_replay_holds_one_layer_and_what_is_in_none(directory: Path) -> None:
    for result in results(directory, "costs"):
        outside, *layers = result["sizes"]
        assert result["held"]["replay"] == outside + max(layers) <= result["held"]["training"]


def test_weights_are_read_while_they_are_gathered_and_what_is_absent_is_said(
    directory: Path, tmp_path: Path
) -> None:
    one = flat_shards.run("weighed", tmp_path)
    first, second = results(directory, "weighed")
    for ours, theirs, mirrored in zip(one["records"], first["records"], second["records"], strict=True):
        assert set(theirs.keys()) == {name for name in ours if not name.startswith(ABSENT)}
        for name in theirs:
            np.testing.assert_allclose(theirs[name], ours[name], 1e-5, 1e-5, err_msg=name)
            np.testing.assert_array_equal(theirs[name], mirrored[name])
        assert ("weight_drift.query" in theirs) == (theirs.step in (0, 6))
    updates, importance = first["warnings"]
    assert "update_size, unchanged_share" in updates
    assert "importance is absent: ranks have parts of the parameters only" in importance
    assert second["warnings"] == []


@pytest.mark.parametrize(("scenario", "steps"), FAILING.items())
def test_a_rank_that_fails_costs_all_ranks_that_sample_and_nothing_else(
    directory: Path, scenario: str, steps: list[int]
) -> None:
    assert_costs_one_sample(directory, scenario, "unmonitored", steps)


def test_a_rank_that_fails_inside_of_a_unit_around_the_model(directory: Path) -> None:
    assert_costs_one_sample(directory, "lightning_fails", "lightning_unmonitored", [0, 4, 6])


def test_training_batches_are_measured_as_in_one_process(directory: Path, tmp_path: Path) -> None:
    one = flat_shards.run("batch", tmp_path)
    first, second = results(directory, "batch")
    for ours, theirs, mirrored in zip(one["records"], first["records"], second["records"], strict=True):
        assert "entropy" in theirs
        assert_same(ours, theirs, 1e-5)
        assert_same(theirs, mirrored, 0.0)


def test_parameters_that_are_offloaded_have_the_training_batch_alone(directory: Path) -> None:
    first, second = results(directory, "offloaded")
    refused, _ = first["warnings"]
    assert "no model can be replayed under FullyShardedDataParallel with parameters that are off" in refused
    assert second["warnings"] == []
