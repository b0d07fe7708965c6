"""What processes made of scenarios whose parameters they share, and what it is compared with."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from support.same_records import assert_same, assert_same_patterns

#: Absent where ranks have parts: read from parameters outside of a forward pass, or with a backward pass.
ABSENT = ("importance", "update_size", "unchanged_share", "bf16_share", "weight_similarity")


def results(directory: Path, scenario: str) -> list[dict[str, Any]]:
    """What each rank made of a scenario."""
    return [pickle.loads(path.read_bytes()) for path in sorted(directory.glob(f"{scenario}.*.pickle"))]


def assert_as_one_process(
    run: Callable[[str, Path], dict[str, Any]], scenario: str, directory: Path, tmp_path: Path
) -> None:
    """Compare the samples of a scenario on a probe with those of one process, to 1e-5."""
    one = run(scenario, tmp_path)
    first, *others = results(directory, scenario)
    assert [record.step for record in one["records"]] == [0, 2, 4, 6, 8][: 5 if scenario == "resumed" else 4]
    for index, (ours, theirs) in enumerate(zip(one["records"], first["records"], strict=True)):
        assert any(name.rpartition("/")[2] == "drift.query" for name in theirs)
        assert theirs.probe_fingerprint
        assert_same(ours, theirs, 1e-5)
        assert_same_patterns(ours, theirs)
        for other in others:
            assert_same(theirs, other["records"][index], 0.0)
    assert all(result["warnings"] == [] for result in (first, *others))


def assert_as_in_bfloat16(
    run: Callable[[str, Path], dict[str, Any]], scenario: str, directory: Path, tmp_path: Path
) -> None:
    """Compare a run that computes in bfloat16 with one process, whose later weights are rounded: at first."""
    one = run(scenario, tmp_path)
    first, second = results(directory, scenario)
    assert_same(one["records"][0], first["records"][0], 1e-5)
    for ours, theirs in zip(first["records"], second["records"], strict=True):
        assert_same(ours, theirs, 0.0)
    assert first["warnings"] == second["warnings"] == []


def assert_same_training(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare losses and final weights to the bit."""
    assert one["loss"] == other["loss"]
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(x, other["weights"][name]) for name, x in one["weights"].items())


def assert_costs_one_sample(
    directory: Path, scenario: str, untouched: str, steps: list[int], rank: int = 1
) -> None:
    """Check that a failure on one rank drops a sample on all of them, and changes nothing else."""
    pairs = zip(results(directory, scenario), results(directory, untouched), strict=True)
    for index, (result, alone) in enumerate(pairs):
        assert [record.step for record in result["records"]] == steps
        assert_same_training(result, alone)
        if index == 0:
            (warning,) = result["warnings"]
            assert f"another rank failed (rank {rank}: RuntimeError: injected)" in warning
        else:
            assert result["warnings"] == []
