"""Which backend runs: what one cannot take, or fails at, goes to the next."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from kernels.calls import problem_of
from kernels.cases import CASES
from lightning_geo import GeometryMonitor, kernels
from lightning_geo.kernels.triton import plan
from support.lit import Lit, bert, fit


@pytest.fixture
def failing(monkeypatch):
    """A kernel that breaks when it runs, where ``auto`` would pick it."""
    module = types.ModuleType("lightning_geo.kernels.failing")
    calls = []

    def attention(problem):
        calls.append(problem)
        raise RuntimeError("no kernel image is available")

    module.attention = attention
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(kernels._FUNCTIONS["attention"], "triton", ("failing", "attention"))
    monkeypatch.setattr(kernels, "_FAILED", {})
    return calls


class OnDevice:
    """Says that a problem's tensors are on a GPU."""

    type = "cuda"


def test_a_kernel_that_fails_is_warned_about_once_and_not_tried_again(failing, caplog):
    problem = problem_of(CASES["plain"]())
    expected = kernels.attention(problem, "chunked").entropy
    for _ in range(2):
        got = kernels._run("attention", "auto", OnDevice(), problem)
        assert torch.equal(got.entropy, expected)
    assert len(failing) == 1
    assert caplog.text.count("no kernel image is available") == 1
    assert "attention: triton kernels fail for torch.float32 width 8 cpu" in caplog.text


def test_a_failure_speaks_for_its_kind_of_call_alone(failing):
    def run(**changes):
        query, key = (torch.randn(1, 1, 4, changes.get("width", 8)).to(changes.get("dtype")) for _ in "qk")
        kernels._run("attention", "auto", OnDevice(), kernels.AttentionProblem(query, key, 1.0))
        x = torch.randn(1, 4, 8)
        kernels._run("stream_statistics", "auto", OnDevice(), x, None, None, frozenset({"norm"}))
        return len(failing)

    assert [run(), run(), run(width=16), run(dtype=torch.float64), run(), run(width=16)] == [1, 1, 2, 3, 3, 3]


def test_another_run_tries_again(failing, tmp_path):
    problem = problem_of(CASES["plain"]())
    for count in (1, 2):
        fit(tmp_path, Lit(bert), GeometryMonitor(50, metrics=["hidden_norm"]), steps=1)
        for _ in range(2):
            kernels._run("attention", "auto", OnDevice(), problem)
        assert len(failing) == count


def test_a_failure_in_the_capture_of_a_graph_rules_nothing_out(failing, monkeypatch):
    problem = problem_of(CASES["plain"]())
    monkeypatch.setattr(kernels, "is_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="no kernel image"):
        kernels._run("attention", "auto", OnDevice(), problem)
    assert not kernels._FAILED


@pytest.mark.parametrize(
    ("width", "dtype", "kibibytes", "taken"),
    [
        (64, torch.bfloat16, 99, True),
        (200, torch.bfloat16, 99, False),
        (128, torch.float32, 160, False),
        (65, torch.float32, 227, True),
    ],
)
def test_a_device_with_too_little_shared_memory_is_told_beforehand(
    width, dtype, kibibytes, taken, monkeypatch
):
    device = types.SimpleNamespace(
        major=9, minor=0, name="a small Hopper", shared_memory_per_block_optin=1024 * kibibytes
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(plan, "missing", lambda _: None)
    query, key = torch.randn(2, 1, 1, 4, width).to(dtype)
    reason = plan.unsupported("attention", kernels.AttentionProblem(query, key, 1.0))
    assert (reason is None) == taken
    if reason is not None:
        assert f"where a small Hopper has {1024 * kibibytes}" in reason


def test_a_backend_that_is_asked_for_by_name_may_say_what_is_wrong(failing):
    with pytest.raises(RuntimeError, match="no kernel image"):
        kernels.attention(problem_of(CASES["plain"]()), "triton")


def test_every_backend_has_every_operation():
    assert {tuple(functions) for functions in kernels._FUNCTIONS.values()} == {kernels.BACKENDS[1:]}


def test_triton_is_for_gpus():
    problem = problem_of(CASES["plain"]())
    reason = kernels._function("attention", "triton", problem)[1]
    assert reason is not None
    assert torch.equal(kernels.attention(problem, "triton").entropy, kernels.attention(problem).entropy)
