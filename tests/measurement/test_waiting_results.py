"""Results wait for others that are alike, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.measurement.waiting_results import WaitingResults


class Result(NamedTuple):
    """What tells results apart here, and how large each is."""

    number: int
    layout: tuple[object, ...]
    nbytes: int


class Owner:
    def __init__(self) -> None:
        self.waiting = WaitingResults(self.compute)
        self.computed: list[list[Result]] = []

    def compute(self, results: list[Result]) -> None:
        assert not torch.is_grad_enabled()
        self.computed.append(results)


@given(results=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5))), limit=st.integers(0, 12))
def test_all_that_are_alike_are_computed_at_once_and_no_more_wait_than_may(
    results: list[tuple[str, int]], limit: int
) -> None:
    owner, waiting, expected = Owner(), list[Result](), list[list[Result]]()

    def finish() -> None:
        for layout in dict.fromkeys(result.layout for result in waiting):
            expected.append([result for result in waiting if result.layout == layout])
        waiting.clear()

    for number, (layout, size) in enumerate(results):
        result = Result(number, (layout,), size)
        owner.waiting.add(result, limit=limit)
        waiting.append(result)
        if sum(result.nbytes for result in waiting) > limit:
            finish()
        assert owner.computed == expected
    owner.waiting.finish()
    finish()
    assert owner.computed == expected
    owner.waiting.finish()  # nothing waits twice
    assert owner.computed == expected
