"""The Triton kernels in Triton's interpreter against the oracle, and what they say they cannot take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.calls import problem_of, qk
from kernels.cases import CASES
from lightning_geo.kernels import triton as backend
from lightning_geo.kernels.triton.launch import missing, unusable

PROGRAM = Path(__file__).parents[1] / "programs" / "interpreted.py"

needs_triton = pytest.mark.skipif(unusable() is not None, reason=f"{unusable()}; it is for Linux only")


def test_a_triton_older_than_its_kernels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.6 to 2.10 bring one: the kernels are left alone, and the reason says so."""
    pytest.importorskip("triton")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.2.0")
    unusable.cache_clear()
    try:
        assert missing(torch.device("cpu")) == "Triton 3.2.0 is older than 3.6"
    finally:
        unusable.cache_clear()


@pytest.fixture(scope="module")
def verdicts() -> dict[str, str | None]:
    """What went wrong in each check of the program; None if nothing."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(json.loads(line) for line in run.stdout.splitlines())


@needs_triton
@pytest.mark.slow
def test_agrees_with_the_oracle(verdicts: dict[str, str | None]) -> None:
    wrong = {name: error for name, error in verdicts.items() if error is not None}
    assert not wrong, "\n\n".join(f"{name}: {error}" for name, error in wrong.items())


@needs_triton
@pytest.mark.slow
def test_nearly_all_cases_are_taken(verdicts: dict[str, str | None]) -> None:
    left = {name for name in CASES if name not in verdicts}
    assert left == {
        "no_queries", "no_sequences", "float64", "block_causal", "block_documents",
        "block_per_head", "block_more_keys", "block_table_alone", "block_and_padding",
    }  # fmt: skip


def reason(**arguments: object) -> str | None:
    return backend.unsupported("attention", problem_of({**qk(), **arguments}))


@needs_triton
def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert reason() == "tensors are on cpu, not on a CUDA device"


@needs_triton
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"query": torch.zeros(2, 3, 13, 8).double()}, "a dtype of torch.float64"),
        (qk(dim=300), "a head_dim of 300, above 256"),
        (CASES["block_causal"](), "a BlockMask"),
        (CASES["no_queries"](), "it has no rows"),
        ({"mask": [torch.zeros(13, 13)] * 3}, "3 masks that do not fit into two"),
        # the second bool mask is smaller than the first: both become one
        ({"mask": [torch.zeros(13, 13), torch.zeros(13, 13) > 0, torch.zeros(13) > 0]}, None),
        ({}, None),
    ],
)
def test_says_what_it_cannot_take(
    arguments: dict[str, object], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert reason(**arguments) == expected


def test_loads_without_triton() -> None:
    program = """if True:
        import sys
        sys.modules["triton"] = None
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
        import torch
        from lightning_geo.functional import attention_statistics
        from lightning_geo.kernels import triton
        x = torch.randn(1, 2, 5, 8)
        assert attention_statistics(x, x, backend="triton").entropy.isfinite().all()
        from kernels.calls import problem_of
        print(triton.unsupported("attention", problem_of({"query": x, "key": x})))
    """
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, cwd=root, check=True,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
    )  # fmt: skip
    assert run.stdout.strip() == "Triton is not installed"
