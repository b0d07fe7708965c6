"""A thread beside training that changes nothing in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
import torch

from lightning_geo.measurement.decomposition import principal_subspaces
from lightning_geo.utils import background
from lightning_geo.utils.background import Background


def test_a_result_is_waited_for_and_an_error_is_raised_by_who_asks() -> None:
    go = threading.Event()
    task = Background(lambda: (go.wait(), torch.is_grad_enabled(), threading.current_thread()))
    assert not task.done
    go.set()
    _, grad, thread = task.result()
    assert not grad
    assert thread is not threading.current_thread()
    failed = Background(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result()
    assert failed.done


def test_without_threads_it_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(background.threading.Thread, "start", refuse)
    assert Background(threading.current_thread).result() is threading.current_thread()


def test_seconds_are_those_of_the_thread_at_work() -> None:
    waits = threading.Event()
    idle = Background(lambda: waits.wait(0.2))
    idle.result()
    assert idle.seconds < 0.1


def test_autocast_keeps_the_weights_that_training_has_cast() -> None:
    weight = torch.randn(4, 4, requires_grad=True)

    def leaves_autocast() -> None:
        with torch.autocast("cpu", enabled=False):
            torch.ones(2)

    def casts(beside: Callable[[], object]) -> int:
        with torch.autocast("cpu", torch.bfloat16):
            products = [torch.ones(1, 4) @ weight]
            beside()
            products.append(torch.ones(1, 4) @ weight)
        return len({y.grad_fn.next_functions[1][0] for y in products})

    thread = threading.Thread(target=leaves_autocast)
    assert casts(lambda: (thread.start(), thread.join())) == 2  # what any thread does to it
    assert casts(lambda: Background(leaves_autocast).result()) == 1


def test_decompositions_leave_the_threads_of_training_alone() -> None:
    before = torch.get_num_threads()
    roots = torch.randn(64, 8, 9)
    seen: list[int] = []

    def decomposes() -> None:
        principal_subspaces(roots @ roots.mT, 2)
        seen.append(torch.get_num_threads())

    try:
        torch.set_num_threads(3)
        decomposes()
        Background(decomposes).result()
        threading.Thread(target=lambda: seen.append(torch.get_num_threads())).start()
        assert torch.get_num_threads() == 3
        assert set(seen) == {3}, os.environ.get("OMP_NUM_THREADS")
    finally:
        torch.set_num_threads(before)
