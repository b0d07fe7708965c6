"""Two ranks that wait for programs, for those who ask them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import threading
from pathlib import Path

from run_machine.two_ranks import PATIENCE, RANKS, Program
from support.forks import Forks

__all__ = ["Pair"]


class Pair:
    """Two ranks that wait for programs; started anew after a failure.

    Args:
        directory: For their files.
        forks: Runs both; it does nothing else until they are closed.
    """

    def __init__(self, directory: Path, forks: Forks) -> None:
        self._directory, self._forks = directory, forks
        self._ranks: list[_Rank] = []
        self._running: threading.Thread | None = None
        self._count = self._starts = 0

    def _start(self) -> None:
        self._starts, self._count = self._starts + 1, 0
        self._here = self._directory / f"start_{self._starts}"
        self._here.mkdir()
        self._ranks = [_Rank(self._here, rank) for rank in range(RANKS)]

        def both() -> None:
            with contextlib.suppress(AssertionError):  # one was killed, or failed, of which its stderr tells
                self._forks.ranks(
                    RANKS, "run_machine.two_ranks", str(self._here), folder=self._here, seconds=10**7
                )

        self._running = threading.Thread(target=both, daemon=True)
        self._running.start()
        for rank in self._ranks:  # the first that it says is which process it is
            said = rank.line(PATIENCE)
            assert said is not None, "a rank does not start"
            rank.process = int(said)

    def run(self, program: Program) -> dict[str, int]:
        """Let both ranks do it; how much there was to compare.

        Raises:
            AssertionError: If one finds fault, or does not answer.
        """
        if not self._ranks:
            self._start()
        path = self._here / f"program_{self._count}.pickle"
        path.write_bytes(pickle.dumps(program))
        for rank in self._ranks:
            rank.programs.write(f"{path}\n")
        silent = [number for number, rank in enumerate(self._ranks) if not self._answers(rank)]
        answers = [self._here / f"answer_{self._count}.{rank}" for rank in range(RANKS)]
        texts = [answer.read_text() if answer.exists() else "no answer" for answer in answers]
        self._count += 1
        well = all(text.startswith("well") for text in texts)
        if silent or not (well or program.plant):
            self.close()
        assert not silent, f"ranks {silent} do not answer: {texts}"
        assert well, "\n".join(texts)
        found: dict[str, int] = json.loads(texts[0].removeprefix("well"))
        return found

    def _answers(self, rank: _Rank) -> bool:
        for _ in range(3 * PATIENCE):
            if (line := rank.line(1)) is not None:
                return line == f"answered {self._count}\n".encode()
            if self._running is None or not self._running.is_alive():
                return False
        return False

    def close(self) -> None:
        """Let them go."""
        for rank in self._ranks:
            rank.close()
        if self._running is not None:
            self._running.join(PATIENCE)
        self._ranks, self._running = [], None


class _Rank:
    """What is said to a rank, and what it says."""

    def __init__(self, directory: Path, rank: int) -> None:
        ends = []
        for name in ("programs", "answers"):
            os.mkfifo(path := directory / f"{name}.{rank}")
            ends.append(os.open(path, os.O_RDWR))  # which waits for nobody
        self.programs = open(ends[0], "w", buffering=1)  # noqa: SIM115
        self.answers = open(ends[1], "rb", buffering=0)  # noqa: SIM115 `select` knows of no buffer
        self.process: int | None = None

    def line(self, seconds: float) -> bytes | None:
        """What it says next; None if it says nothing for so long."""
        return self.answers.readline() if select.select([self.answers], [], [], seconds)[0] else None

    def close(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
        self.programs.close()
        self.answers.close()
