"""Curves in one line of text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.utils.sparkline import sparkline

NUMBERS = st.lists(st.floats(width=32) | st.floats(), min_size=1, max_size=40)


@given(NUMBERS, st.integers(1, 12), st.sampled_from(["utf-8", "ascii", "cp437", "latin-1", "no such"]))
def test_any_numbers_fit_and_can_be_written(numbers: list[float], width: int, encoding: str) -> None:
    text = sparkline(numbers, width, encoding)
    assert len(text) == min(width, len(numbers))
    text.encode("ascii" if encoding == "no such" else encoding)
    known = [number for number in numbers if math.isfinite(number)]
    assert text[-1] == " " if not math.isfinite(numbers[-1]) else text[-1] != " "
    if math.isfinite(numbers[-1]) and len(set(known)) > 1 and numbers[-1] == max(known):
        assert text[-1] in "█#"


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12, unique=True))
def test_higher_is_higher(numbers: list[float]) -> None:
    levels = ["▁▂▃▄▅▆▇█".index(level) for level in sparkline(numbers, len(numbers), "utf-8")]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    assert [levels[place] for place in order] == sorted(levels)
    assert (min(levels), max(levels)) == (0, 7)


def test_it_follows_the_output(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        encoding = "ascii"

    monkeypatch.setattr("sys.stdout", Terminal())
    assert sparkline([0, 1], 2) == "_#"
    Terminal.encoding = "utf-8"
    assert sparkline([0, 1], 2) == "▁█"
