"""Which samples of a run that was resumed are shown."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from lightning_geo.dashboard.samples import in_force


class Datum(NamedTuple):
    step: int
    wall_time: float


@pytest.mark.parametrize(
    ("samples", "sessions", "kept"),
    [
        ([(0, 1), (10, 2), (20, 3)], [], [0, 10, 20]),
        ([(0, 1), (10, 2), (20, 3), (10, 4), (30, 5)], [], [0, 10, 30]),  # the last written wins
        ([(0, 1), (10, 2), (20, 3), (30, 6)], [(15, 5)], [0, 10, 30]),
        ([(0, 1), (10, 2), (20, 3)], [(10, 5)], [0]),  # resumed, no sample yet
        ([(0, 1), (10, 2), (20, 5), (30, 8)], [(20, 4), (5, 7)], [0, 30]),  # resumed twice
        ([], [(0, 1)], []),
    ],
)
def test_what_was_replaced_is_left_out(
    samples: list[tuple[int, float]], sessions: list[tuple[int, float]], kept: list[int]
) -> None:
    found = in_force([Datum(*s) for s in samples], [Datum(*s) for s in sessions])
    assert [sample.step for sample in found] == kept
