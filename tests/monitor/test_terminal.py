"""What a terminal shows of a run: the monitor's lines beside progress bars, which stay whole."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytorch_lightning as pl

from support.forks import Forks

PROGRAM = Path(__file__).parents[1] / "programs" / "bars.py"
COLUMNS = 220
#: Cursor and colours: letters are those of ECMA-48.
SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


def shown(kind: str, forks: Forks, folder: Path) -> list[str]:
    """The lines of a terminal at the end of the program."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("COLUMNS", None)
    with ThreadPoolExecutor(1) as pool:  # a terminal holds a few lines that nobody has read
        output = pool.submit(written, parent)
        try:
            [status], _, _ = forks.run(
                [str(PROGRAM), kind], folder=folder, environments=[environment], terminal=os.ttyname(child)
            )
        finally:
            os.close(child)
    os.close(parent)
    text = output.result().decode()
    assert status == 0, text
    return screen(text)


def written(terminal: int) -> bytes:
    """Everything that is written to a terminal until it is closed."""
    output = bytearray()
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            return bytes(output)
        if not part:
            return bytes(output)
        output += part


def screen(text: str) -> list[str]:
    """What a terminal makes of an output: enough of ECMA-48 for the two kinds of bars."""
    lines, row, column, place = [""], 0, 0, 0
    while place < len(text):
        if sequence := SEQUENCE.match(text, place):
            place = sequence.end()
            count = int(sequence[2]) if sequence[2].isdecimal() else 0
            if sequence[3] == "A":
                row = max(0, row - max(count, 1))
            elif sequence[3] == "K":
                lines[row] = lines[row][:column] if count == 0 else ""
            continue
        character, place = text[place], place + 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            lines += [""] * (row >= len(lines))
        else:
            lines[row] = f"{lines[row]:{column}}"[:column] + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def test_the_terminal_of_this_test_is_one() -> None:
    assert screen("a 10 %\ra 20 %\n\x1b[Ab\x1b[K\r\ndone\x1b[2K\rx") == ["a 20 %b", "x"]
    assert screen("bar\r\nbelow\x1b[1A\r\x1b[2Kline\r\nbelow") == ["line", "below"]


#: What the lines of a run of six steps have in them, in their order.
LINES = (
    "found BertForSequenceClassification",
    "samples are taken every step",
    "rules are not checked",
    "warning since step 0",
    "a sample takes",
    "7 samples in",
    "1 thing to look at",
    "largest changes: ",
    "look closer: lightning-geo show ",
)


def ours_of(lines: list[str], expected: tuple[str, ...]) -> list[str]:
    """The monitor's lines, each of which is one of those expected, in their order, and stands by itself."""
    ours = [line for line in lines if "GeometryMonitor" in line]
    assert all(line.startswith("GeometryMonitor: ") for line in ours), ours
    places = [next((i for i, line in enumerate(ours) if start in line), -1) for start in expected]
    assert places == list(range(len(ours))), ours
    return ours


#: The bar of Lightning 2.4 fails by itself with later versions of rich, which its requirements admit.
rich = pytest.param(
    "rich",
    marks=pytest.mark.skipif(pl.__version__.startswith("2.4"), reason="Lightning 2.4 fails with this rich"),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tqdm", rich])
def test_every_line_is_beside_the_bar_which_stays_whole(kind: str, forks: Forks, tmp_path: Path) -> None:
    lines = shown(kind, forks, tmp_path)
    ours_of(lines, LINES)
    # Lightning's own last message stands behind the bar, which is drawn once more below: no other line does
    bars = [line.partition("`Trainer.fit` stopped")[0].rstrip("] ") for line in lines if "it/s" in line]
    assert len(bars) == 2, bars
    assert all(bar.startswith("Epoch 0") and bar.endswith("it/s") for bar in bars), bars


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loop", "trainer"])
def test_a_script_that_sets_no_logging_up_shows_the_lines_beside_its_bar(
    kind: str, forks: Forks, tmp_path: Path
) -> None:
    lines = shown(kind, forks, tmp_path)
    ours_of(lines, LINES)
    bars = [line for line in lines if "6/6" in line and "it/s" in line]
    assert len(bars) == 1, lines
    assert "GeometryMonitor" not in bars[0]


@pytest.mark.slow
def test_a_level_of_the_packages_logger_turns_the_lines_off_but_warnings_stay(
    forks: Forks, tmp_path: Path
) -> None:
    ours_of(shown("quiet", forks, tmp_path), ("warning since step 0",))
