"""Which samples of two runs belong together."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.analysis.alignment import align


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=20, unique=True),
    st.lists(st.integers(0, 300), min_size=1, max_size=20, unique=True),
)
def test_pairs_are_equal_steps_or_each_others_nearest(a: list[int], b: list[int]) -> None:
    first, second = np.array(sorted(a)), np.array(sorted(b))
    found = align(first, second)
    pairs = list(zip(first[found.a].tolist(), second[found.b].tolist(), strict=True))
    assert pairs
    assert pairs == sorted(set(pairs))
    if "common" in found.how:
        assert [x for x, _ in pairs] == [y for _, y in pairs] == sorted(set(a) & set(b))
    else:
        for x, y in pairs:
            assert abs(x - y) == min(abs(x - other) for other in b) == min(abs(other - y) for other in a)
        assert f"at most {max(abs(x - y) for x, y in pairs)} apart" in found.how


def test_memory_grows_with_the_samples_not_with_their_pairs() -> None:
    a, b = np.arange(0, 400_000, 100), np.arange(0, 400_000, 101)
    tracemalloc.start()
    try:
        found = align(a, b)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.a) > 3000
    assert peak < 100 * (a.nbytes + b.nbytes)  # all pairs take 4,000 times as much


def test_equal_steps_are_enough_where_there_are_many() -> None:
    every_10, every_20 = np.arange(0, 101, 10), np.arange(0, 141, 20)
    assert align(every_10, every_20).how == "6 common steps, 0 to 100"
    # one common step among many near ones says nothing about the rest of the run
    assert align(every_10, every_10 * 11 // 10).how == "10 pairs of nearest steps, at most 5 apart, 0 to 100"
