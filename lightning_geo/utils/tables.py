"""Text as wide as a terminal: tables, wrapped lines, and names cut in the middle."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence

from lightning_geo.utils.formatting import plain

__all__ = ["Columns", "cut", "display_width", "table", "terminal_width", "wrapped"]

_GAP = 2  # columns between two cells
_PROSE = 100  # longer lines of text are hard to read, however wide the terminal


def terminal_width() -> int | None:
    """Return the width to fill: ``COLUMNS``, or the terminal's; ``None`` where output is no terminal."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError, AttributeError):  # a pipe, a closed stream, or a notebook's
        return None


def display_width(text: str) -> int:
    """Return how many columns a terminal gives a text.

    Example:
        >>> display_width("abc"), display_width("漢字"), display_width("e\u0301")
        (3, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):  # accents go above the character before
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Cut a text in the middle: names of runs and metrics differ at either end.

    Example:
        >>> cut("learning_rate=0.001/version_0", 17)
        'learning…ersion_0'
    """
    if display_width(text) <= width:
        return text
    room = max(width - 1, 0)
    tail = _head(text[::-1], room // 2)[::-1]
    return f"{_head(text, room - room // 2)}…{tail}" if width > 0 else ""


def _head(text: str, width: int) -> str:
    """As many characters as fit."""
    used = 0
    for position, character in enumerate(text):
        used += _columns_of(character)
        if used > width:
            return text[:position]
    return text


def wrapped(text: object, width: int | None, *, first: str = "", rest: str = "") -> str:
    """Return a line of text as several that fit.

    Args:
        text: The line; what a terminal might obey is written out.
        width: Columns; ``None`` for one line, however long.
        first: Goes before the first line.
        rest: Goes before the others.

    Example:
        >>> print(wrapped("one two three", 10, first="- ", rest="  "))
        - one two
          three
    """
    if width is None:
        return f"{first}{plain(text)}"
    return "\n".join(_lines(plain(text), min(width, _PROSE), first, rest))


def _lines(text: str, width: int, first: str, rest: str) -> list[str]:
    lines, line, empty = [], first, True
    words = text.split(" ")
    while words:
        word = words.pop(0)
        longer = f"{line}{word}" if empty else f"{line} {word}"
        if display_width(longer) <= width:
            line, empty = longer, False
        elif not empty:
            lines.append(line)
            line, empty = rest, True
            words.insert(0, word)
        else:  # a path, say, that is longer than a line
            part = _head(word, max(width - display_width(line), 1)) or word[0]
            lines.append(line + part)
            line, empty = rest, True
            words[:0] = [word[len(part) :]] * (part != word)
    return lines if empty else [*lines, line]


class Columns:
    """The columns of a table: which are shown, and how wide each is.

    Args:
        titles: Their titles, each once.
        widths: The width that each column needs.
        left: Titles of columns aligned to the left; by default the first one.
        least: How narrow columns may become. Their cells are cut in the middle.
        drop: Columns to leave out where the narrowest do not fit either: those of a group together, the first
            group first.
        wrap: The last column, if its cells are sentences: aligned to the left, and wrapped instead of cut.
        width: Columns of the terminal; ``None`` for as many as are needed.
    """

    def __init__(
        self,
        titles: Sequence[str],
        widths: Sequence[int],
        *,
        left: Collection[str] | None = None,
        least: Mapping[str, int] | None = None,
        drop: Sequence[Sequence[str]] = (),
        wrap: str | None = None,
        width: int | None = None,
    ) -> None:
        self._left = {*(titles[:1] if left is None else left), wrap}
        self._wrap = wrap
        self._width = width
        self._titles = titles
        self._widths = dict(zip(titles, widths, strict=True))
        self._least = {title: min(self._widths[title], size) for title, size in (least or {}).items()}
        #: Titles of the columns that were left out.
        self.dropped: list[str] = []
        if width is not None:
            self._fit(width, drop)

    def _fit(self, width: int, drop: Sequence[Sequence[str]]) -> None:
        for titles in drop:
            if self._total({**self._widths, **self._least}) <= width:
                break
            self.dropped += titles
        for _ in range(self._total(self._widths) - width):
            wide = [
                title
                for title in self._shown()
                if title in self._least and self._widths[title] > self._least[title]
            ]
            if not wide:
                break
            self._widths[max(wide, key=self._widths.__getitem__)] -= 1

    def _shown(self) -> list[str]:
        return [title for title in self._titles if title not in self.dropped]

    def _total(self, widths: Mapping[str, int]) -> int:
        shown = self._shown()
        return sum(widths[title] for title in shown) + _GAP * (len(shown) - 1)

    def header(self) -> str:
        """Return the titles as a line."""
        return self.line(self._titles)

    def line(self, cells: Sequence[str]) -> str:
        """Return a row as text; several lines if its last cell is wrapped.

        Args:
            cells: As many as titles, those of dropped columns included.
        """
        by_title = dict(zip(self._titles, map(plain, cells), strict=True))
        parts = [self._padded(title, by_title[title]) for title in self._shown() if title != self._wrap]
        line = (" " * _GAP).join(parts)
        if self._wrap is None or self._wrap in self.dropped:
            return line.rstrip()
        before = f"{line}{' ' * _GAP}"
        if self._width is None:
            return f"{before}{by_title[self._wrap]}".rstrip()
        indent = " " * display_width(before)
        room = len(indent) + self._widths[self._wrap]
        lines = _lines(by_title[self._wrap], room, before, indent)
        return "\n".join(part.rstrip() for part in lines)

    def _padded(self, title: str, cell: str) -> str:
        if title in self._least:  # of the others none is cut: half a number is another number
            cell = cut(cell, self._widths[title])
        space = " " * (self._widths[title] - display_width(cell))
        return cell + space if title in self._left else space + cell


def table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[str] | None = None,
    least: Mapping[str, int] | None = None,
    drop: Sequence[Sequence[str]] = (),
    wrap: str | None = None,
    width: int | None = None,
) -> str:
    """Return a table that fits, with a last line on the columns that were left out.

    Args:
        titles: Titles of the columns.
        rows: Cells, as many as titles.
        left: See :class:`Columns`, as for the others.
        least: How narrow columns may become.
        drop: Columns to leave out first.
        wrap: The column whose cells are wrapped.
        width: Columns of the terminal.

    Example:
        >>> print(table(("run", "steps"), [("baseline/version_0", "50")], least={"run": 5}, width=20))
        run            steps
        baseli…sion_0     50
    """
    widths = [
        max(display_width(plain(cell)) for cell in column) for column in zip(titles, *rows, strict=True)
    ]
    columns = Columns(titles, widths, left=left, least=least, drop=drop, wrap=wrap, width=width)
    lines = [columns.header(), *map(columns.line, rows)]
    if columns.dropped:
        dropped = [title for title in titles if title in columns.dropped]
        lines.append(wrapped(f"Not shown at this width: {', '.join(dropped)}.", width))
    return "\n".join(lines)
