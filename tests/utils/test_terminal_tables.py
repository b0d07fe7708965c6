"""Tables and text fit the width that they are given, whatever names they hold."""

from __future__ import annotations

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from lightning_geo.utils.tables import Columns, cut, display_width, table, terminal_width, wrapped

#: Names as file systems have them: Latin, Greek, wide characters, accents that combine, emoji.
NAMES = st.text("ab_/=. -,éßω漢字カ한\u0301🎉…×", max_size=90)


@given(NAMES)
def test_width_is_what_rich_measures(text: str) -> None:
    assert display_width(text) == cell_len(text)


@given(NAMES, st.integers(0, 60))
def test_a_name_is_cut_in_the_middle(text: str, width: int) -> None:
    short = cut(text, width)
    assert cell_len(short) <= width
    if cell_len(text) <= width:
        assert short == text
    elif width:
        assert cell_len(short) >= width - 2  # a wide character did not fit on either side
        assert any(
            mark == "…" and text.startswith(short[:i]) and text.endswith(short[i + 1 :])
            for i, mark in enumerate(short)
        )
    else:
        assert short == ""


@given(NAMES, st.integers(12, 100), st.sampled_from(["", "A  ", "  "]))
def test_wrapped_text_fits_and_loses_nothing(text: str, width: int, first: str) -> None:
    lines = wrapped(text, width, first=first, rest="    ").split("\n")
    assert all(cell_len(line) <= width for line in lines)
    whole = "".join(line[len(first if not number else "    ") :] for number, line in enumerate(lines))
    assert whole.replace(" ", "") == text.replace(" ", "")
    assert "\n" not in wrapped(text, None, first=first)


@given(
    st.lists(st.tuples(NAMES, NAMES, st.integers(0, 10**9), NAMES), max_size=6),
    st.sampled_from([60, 80, 120]),
)
def test_a_table_fits(rows: list[tuple[str, str, int, str]], width: int) -> None:
    cells = [(run, model, f"{steps:,}", why) for run, model, steps, why in rows]
    titles = ("run", "model", "steps", "why")
    least = {"run": 10, "model": 10, "why": 20}
    text = table(titles, cells, least=least, drop=(("model",),), wrap="why", width=width)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert all(steps in text for _, _, steps, _ in cells)  # numbers are never cut
    # with all the room that it needs nothing is cut, wrapped or left out
    whole = table(titles, cells, least=least, drop=(("model",),), left=("run", "model"), width=None)
    assert "Not shown" not in whole
    assert all(name.rstrip() in whole for row in rows for name in row[:2])


def test_columns_are_dropped_only_where_narrow_ones_do_not_fit() -> None:
    rows = [("baseline/version_0", "encoder/effective_rank.output", "12")]
    titles, least = ("run", "metric", "step"), {"run": 8, "metric": 10}
    left = ("run", "metric")
    assert table(titles, rows, left=left, least=least, drop=(("run",),), width=30) == "\n".join(
        ["run          metric       step", "basel…ion_0  encod…utput    12"]
    )
    assert table(titles, rows, left=left, least=least, drop=(("run",),), width=20) == "\n".join(
        ["metric          step", "encoder…output    12", "Not shown at this", "width: run."]
    )


def test_a_line_outside_the_table_keeps_its_columns() -> None:
    columns = Columns(("step", "entropy"), (6, 9), left=(), width=80)
    assert [columns.header(), columns.line(("50", "0.25"))] == ["  step    entropy", "    50       0.25"]
    assert columns.line(("123456789", "0.25")) == "123456789       0.25"  # wider than was thought, but whole


def test_names_cannot_command_the_terminal() -> None:
    assert table(("run",), [("\x1b[2J",)]) == "run\n\\x1b[2J"
    assert wrapped("a\nb\x1b", 40) == r"a\nb\x1b"


def test_the_width_is_columns_or_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, width in (("80", 80), ("0", None), ("wide", None), ("", None)):
        monkeypatch.setenv("COLUMNS", text)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        assert terminal_width() == width
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((132, 40)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(os.dup(1), "w")))
    assert terminal_width() == 132
